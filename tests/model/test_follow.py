"""Rows of several Plans in one store, against each alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model import follow
from model.cores import exactly
from model.follow import Clip, Final, Follow, FollowingRows, replay
from model.grids import uniform
from model.noise import Stream, normal
from model.plan import Plan
from model.process import VPLinear
from model.query import Answer, Condition, Query, run
from model.samplers import ddpm, dpmpp_2m

SHAPE = (1, 3, 5)
PROCESS = VPLinear()
LONG, SHORT = ddpm(PROCESS, uniform(PROCESS, 70)), ddpm(PROCESS, uniform(PROCESS, 37))
CALM = dpmpp_2m(PROCESS, uniform(PROCESS, 41))
NARROW = Clip(low=-0.3, high=0.2)


def course(plan: Plan, rows: int, seed: int, clip: Clip | None = None) -> Follow:
    seeds = torch.arange(seed, seed + rows)
    return Follow(
        plan=plan,
        x=normal(seeds, Stream.PRIOR, 0, SHAPE),
        seeds=seeds,
        condition=Condition(label=seeds % 5, guidance=1.0 + seeds.double() / 100.0),
        h=normal(seeds, Stream.PROBE, 0, SHAPE),
        clip=clip,
    )


def evaluate(query: Query) -> Answer:
    """Any function of a row alone, whose bits do not depend on where the row stands."""
    condition = query.condition
    shift = query.log_snr / 7.0 + condition.guidance * condition.label
    return Answer(eps=torch.tanh(2.0 * query.u + shift[:, None, None, None]))


def alone(asked: Follow) -> Final:
    more: dict[str, Any] = {"h": asked.h, "clip": asked.clip}
    return run(replay(asked.plan, asked.x, asked.seeds, asked.condition, **more), evaluate)


@dataclass
class Traveller:
    """A course that enters the store at a tick."""

    course: Follow
    at: int
    part: Any = None
    final: Final | None = None


def travel(travellers: list[Traveller], store: FollowingRows) -> None:
    """All to their ends, side by side; every third tick leaves out whoever came first."""
    tick = 0
    while any(one.final is None for one in travellers):
        for one in travellers:
            if one.at == tick:
                one.part = store.admit(one.course, slice(0, one.course.rows))
        on_way = [one for one in travellers if one.part is not None and one.final is None]
        parts = [one.part for one in (on_way[1:] if tick % 3 == 2 and on_way[1:] else on_way)]
        if parts:
            asked = store.ask(parts)
            store.tell(asked, evaluate(asked.query))
        for one in on_way:
            if one.part is not None and one.part.done:
                one.final = store.result(one.part)
                store.free(one.part)
        tick += 1


@pytest.fixture
def travellers() -> list[Traveller]:
    return [
        Traveller(course(LONG, 1, 10), at=0),
        Traveller(course(SHORT, 3, 20, NARROW), at=0),
        Traveller(course(CALM, 2, 30), at=5),
        Traveller(course(SHORT, 1, 40), at=17),
        Traveller(course(LONG, 2, 50, NARROW), at=60),  # in places that others have left
    ]


def assert_each_is_as_if_alone(travellers: list[Traveller]) -> None:
    for one in travellers:
        expected = alone(one.course)
        assert one.final is not None
        assert torch.equal(one.final.x, expected.x)
        assert torch.equal(one.final.h, expected.h)


def test_rows_of_different_plans_that_come_and_go_end_as_if_alone(
    travellers: list[Traveller],
) -> None:
    travel(travellers, FollowingRows(SHAPE, torch.device("cpu")))
    assert_each_is_as_if_alone(travellers)


def test_images_too_large_to_draw_many_calls_at_once_end_alike(
    travellers: list[Traveller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_MOST_VALUES", 20)
    travel(travellers, FollowingRows(SHAPE, torch.device("cpu")))
    monkeypatch.undo()
    assert_each_is_as_if_alone(travellers)


@pytest.mark.parametrize("plan", [SHORT, CALM])
def test_an_update_is_the_plan_s_matrix_of_registers_output_and_noise(plan: Plan) -> None:
    """Written out in numpy, call by call."""
    asked, process = course(plan, 2, 7, NARROW), plan.process
    assert asked.h is not None
    registers = np.stack((asked.x, asked.h, asked.x))  # x, h, y
    for call, t in enumerate(plan.times):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        scale = float(process.scale(t))
        log_snr = process.log_snr(t).repeat(2)
        y = registers[2]
        eps = evaluate(
            Query(u=torch.from_numpy(y / scale), log_snr=log_snr, condition=asked.condition)
        ).eps.numpy()
        x0 = ((y - sigma * eps) / alpha).clip(NARROW.low, NARROW.high)
        eps = (y - alpha * x0) / sigma
        z = normal(asked.seeds, Stream.STEP, call, SHAPE).numpy()
        registers = np.einsum("rk,k...->r...", plan.table[call], np.stack((*registers, eps, z)))
    final = alone(asked)
    np.testing.assert_allclose(final.x, registers[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(final.h, registers[1], rtol=1e-9, atol=1e-9)


def test_where_noise_cannot_be_drawn_the_same_parts_can_be_asked_again(
    travellers: list[Traveller], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FollowingRows(SHAPE, torch.device("cpu"))
    part = store.admit(travellers[0].course, slice(0, 1))

    def fail(*_: object) -> Tensor:
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as context:
        context.setattr(follow, "normal", fail)
        with pytest.raises(RuntimeError, match="not enough memory"):
            store.ask([part])
    while not part.done:
        asked = store.ask([part])
        store.tell(asked, evaluate(asked.query))
    assert torch.equal(store.result(part).x, alone(travellers[0].course).x)


def test_cores_that_share_an_update_change_no_bit() -> None:
    """A row's registers may then be cut anywhere."""
    seeds = torch.arange(7)
    x = normal(seeds, Stream.PRIOR, 0, (3, 32, 33))
    plan = ddpm(PROCESS, uniform(PROCESS, 3))

    def final(rows: slice, cores: int) -> Tensor:
        condition = Condition.same(len(seeds[rows]))
        with exactly(cores):
            return run(replay(plan, x[rows], seeds[rows], condition, clip=NARROW), evaluate).x

    together = final(slice(0, 7), 3)
    for row in range(7):
        assert torch.equal(together[row : row + 1], final(slice(row, row + 1), 1))

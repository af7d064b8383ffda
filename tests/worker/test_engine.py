"""The engine over the real Redis: merging, leaving, failing, handing back."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.analytic import GaussianMixture
from model.cores import exactly
from model.follow import Follow, FollowingRows
from model.noise import image_seeds
from model.query import Answer, Query
from service.jobs.arrays import pack, unpack
from service.jobs.job import Status
from service.jobs.lease import Claim
from tests.e2e.running import wait_until
from tests.laws.mixture import draw
from tests.worker.conftest import KNEE, SHAPE, Stopped
from worker import threads
from worker.courier import Courier
from worker.engine import ROOM, Engine
from worker.knee import Curve, Curves
from worker.runner import Lane
from worker.shelf import ServedModel, Shelf
from worker.threads import SharedCores

Claimed = Callable[..., Claim]
Points = Callable[[int], Tensor]
DDPM = {"name": "ddpm", "steps": 12}


@pytest.fixture
def points(served: ServedModel, network: GaussianMixture) -> Callable[[int], Tensor]:
    """`points(count)`: levels of images drawn from the mixture, where its ODE is well-behaved."""
    spec = served.checkpoint.description.data
    return lambda count: spec.to_levels(draw(network, count)).round()


def levels(points: Tensor) -> bytes:
    return pack({"levels": points.numpy()})


@pytest.fixture
def calls(served: ServedModel) -> Iterator[list[int]]:
    """The number of rows of every network call that is made."""
    sizes: list[int] = []
    hook = served.checkpoint.network.register_forward_hook(
        lambda module, arguments, output: sizes.append(len(output))
    )
    yield sizes
    hook.remove()


def test_jobs_of_different_samplers_share_every_network_call(
    stopped: Stopped, claimed: Claimed, calls: list[int]
) -> None:
    first = claimed("generate", count=3, seed=1, sampler=DDPM)
    second = claimed("generate", count=2, seed=2, sampler={"name": "ddim", "steps": 5})
    stopped.run(first, second)
    assert calls == [5] * 5 + [3] * 7
    assert stopped.job(first).status is stopped.job(second).status is Status.SUCCEEDED


def test_a_job_joins_while_another_is_under_way(
    stopped: Stopped, claimed: Claimed, calls: list[int]
) -> None:
    stopped.admit(claimed("generate", count=1, seed=1, sampler=DDPM))
    for _ in range(4):
        stopped.engine.tick()
    stopped.run(claimed("generate", count=1, seed=2, sampler={"name": "ddpm", "steps": 4}))
    assert calls == [1] * 4 + [2] * 4 + [1] * 4


def test_a_result_does_not_depend_on_what_ran_beside_it(
    stopped: Stopped, claimed: Claimed, points: Points
) -> None:
    def request(seed: int) -> Claim:
        return claimed("generate", count=2, seed=seed, sampler=DDPM, format="npy")

    alone, crowded = request(3), request(3)
    stopped.run(alone)
    stopped.run(request(4), crowded, claimed("loglik", levels(points(2)), seed=0))
    arrays = [
        np.load(io.BytesIO(stopped.artifact(claim, "images.npy"))) for claim in (alone, crowded)
    ]
    assert np.abs(arrays[0] - arrays[1]).max() < 1e-9


def test_generate_delivers_a_png_an_image_and_a_grid(stopped: Stopped, claimed: Claimed) -> None:
    claim = claimed("generate", count=3, seed=1, sampler=DDPM, class_label=1)
    stopped.run(claim)
    job = stopped.job(claim)
    assert job.result is not None
    assert [image["artifact"] for image in job.result["images"]] == ["0.png", "1.png", "2.png"]
    assert [image["nfe"] for image in job.result["images"]] == [12, 12, 12]
    assert Image.open(io.BytesIO(stopped.artifact(claim, "0.png"))).size == (4, 4)
    assert Image.open(io.BytesIO(stopped.artifact(claim, job.result["grid"]))).size == (9, 9)


def test_one_image_can_be_asked_for_again_by_its_own_seed(
    stopped: Stopped, claimed: Claimed
) -> None:
    whole = claimed("generate", count=3, seed=1, sampler=DDPM)
    stopped.run(whole)
    result = stopped.job(whole).result
    assert result is not None
    again = claimed("generate", count=1, seeds=[result["images"][2]["seed"]], sampler=DDPM)
    stopped.run(again)
    assert stopped.artifact(again, "0.png") == stopped.artifact(whole, "2.png")


@pytest.mark.parametrize(
    "solver",
    [{"name": "adaptive", "tolerance": 1e-6}, {"name": "heun", "steps": 200}],
    ids=["adaptive", "heun"],
)
def test_latents_decode_to_the_images_they_came_from(
    stopped: Stopped, claimed: Claimed, points: Points, solver: dict[str, Any]
) -> None:
    given = points(3).numpy()
    encoded = claimed("invert", levels(points(3)), solver=solver, class_label=None)
    stopped.run(encoded)
    arrays, metadata = unpack(stopped.artifact(encoded, "latents.safetensors"))
    assert arrays["latents"].dtype == np.float64
    assert metadata["digest"] == encoded.job.digest
    decoded = claimed(
        "generate",
        pack({"latents": arrays["latents"]}),
        count=3,
        sampler={"name": "pf_ode", "solver": solver},
        init={"latents": {"job": "elsewhere"}},
        format="npy",
    )
    stopped.run(decoded)
    back = np.load(io.BytesIO(stopped.artifact(decoded, "images.npy")))
    assert np.abs(back - given).max() < 0.5
    result = stopped.job(encoded).result
    assert result is not None
    for image in result["images"]:
        assert image["converged"]
        assert image["round_trip_rmse"] <= image["round_trip_max_error"] < 0.5 * 2 / 256


def test_loglik_is_the_closed_form_of_the_mixture(
    stopped: Stopped,
    claimed: Claimed,
    points: Points,
    served: ServedModel,
    network: GaussianMixture,
) -> None:
    given = points(2)
    claim = claimed(
        "loglik",
        levels(points(2)),
        seed=0,
        dequantization=None,
        divergence={"kind": "exact"},
        solver={"name": "adaptive", "tolerance": 1e-6},
    )
    stopped.run(claim)
    result = stopped.job(claim).result
    assert result is not None
    spec, process = served.checkpoint.description.data, served.checkpoint.description.process
    truth = network.log_prob(process, spec.to_model(given), process.t_min)
    for image, expected in zip(result["images"], truth.tolist(), strict=True):
        # The prior N(0, I) in place of the mixture's own p_T costs up to α_T ‖m‖ ‖z‖ ≈ 0.06 nats.
        assert image["log_likelihood"] == pytest.approx(expected, abs=0.1)
        bits = -expected / (16 * np.log(2)) + np.log2(256 / 2)
        assert image["bits_per_dim"] == pytest.approx(bits, abs=0.01)
        assert image["prior"] + image["volume"] == pytest.approx(image["log_likelihood"])
        assert image["standard_error"] == {"probe": 0.0, "dequantization": None}
        assert image["t_min"] == process.t_min


def test_an_integral_that_was_not_finished_is_no_likelihood(
    stopped: Stopped, claimed: Claimed, points: Points
) -> None:
    solver = {"name": "adaptive", "tolerance": 1e-6, "max_calls": 8}
    claim = claimed("loglik", levels(points(1)), seed=0, solver=solver)
    stopped.run(claim)
    result = stopped.job(claim).result
    assert result is not None
    image = result["images"][0]
    assert image["converged"] is False
    assert image["log_likelihood"] is image["bits_per_dim"] is None
    assert image["standard_error"] == {"probe": None, "dequantization": None}


def test_loglik_over_several_dequantisations_states_both_errors(
    stopped: Stopped, claimed: Claimed, points: Points
) -> None:
    claim = claimed(
        "loglik", levels(points(1)), seed=0, dequantization={"kind": "uniform", "samples": 4}
    )
    stopped.run(claim)
    result = stopped.job(claim).result
    assert result is not None
    errors = result["images"][0]["standard_error"]
    assert errors["probe"] > 0
    assert errors["dequantization"] > 0


def test_the_bound_lies_below_the_likelihood_and_is_the_sum_of_its_terms(
    stopped: Stopped, claimed: Claimed, points: Points
) -> None:
    given = levels(points(4))
    bounded = claimed("loglik", given, seed=0, method="elbo", bound={"draws": 200})
    exact = claimed("loglik", given, seed=0, divergence={"kind": "exact"})
    stopped.run(bounded, exact)
    below, density = stopped.job(bounded).result, stopped.job(exact).result
    assert below is not None
    assert density is not None
    gap = 0.0
    for image, other in zip(below["images"], density["images"], strict=True):
        assert sum(image["terms"].values()) == pytest.approx(-image["log_likelihood"])
        assert image["nfe"] == 208
        # log P(level) ≈ log p(x) + log(cell): bits/dim compare the two.
        error = image["standard_error"]["diffusion"] / (16 * np.log(2))
        gap += image["bits_per_dim"] - other["bits_per_dim"] + 4 * error
    assert gap > 0


def test_previews_come_at_the_calls_asked_for(stopped: Stopped, claimed: Claimed) -> None:
    claim = claimed("generate", count=2, seed=1, sampler=DDPM, stream={"every": 5, "what": "x0"})
    stopped.run(claim)
    events = stopped.events(claim)
    previews = [data for kind, data in events if kind == "preview"]
    assert [preview["calls"] for preview in previews] == [5, 10]
    assert [image["index"] for image in previews[0]["images"]] == [0, 1]
    assert events[-1][0] == "succeeded"


def test_a_cancelled_job_frees_its_rows_before_the_next_tick(
    stopped: Stopped, claimed: Claimed, calls: list[int]
) -> None:
    stays = claimed("generate", count=1, seed=1, sampler=DDPM)
    leaves = claimed("generate", count=4, seed=2, sampler=DDPM)
    stopped.admit(stays)
    stopped.admit(leaves)
    stopped.engine.tick()
    stopped.engine.stop_job(leaves, "requested")
    stopped.run()
    assert calls == [5] + [1] * 11
    assert stopped.job(leaves).status is Status.CANCELED
    assert stopped.job(stays).status is Status.SUCCEEDED


def test_a_job_whose_lease_was_lost_leaves_without_a_word(
    stopped: Stopped, claimed: Claimed
) -> None:
    claim = claimed("generate", count=1, seed=1, sampler=DDPM)
    stopped.admit(claim)
    stopped.engine.tick()
    stopped.engine.stop_job(claim, "lost")
    stopped.run()
    assert stopped.job(claim).status is Status.RUNNING  # for the reaper


@pytest.fixture
def fails_above(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, Exception], list[int]]:
    """`fails_above(rows, error)`: network calls of more rows raise it; the sizes of all calls."""
    answer = type(served.denoiser).__call__

    def install(rows: int, error: Exception) -> list[int]:
        sizes = []

        def limited(self: object, query: Query) -> Answer:
            sizes.append(len(query.u))
            if len(query.u) > rows:
                raise error
            return answer(self, query)  # type: ignore[arg-type]

        monkeypatch.setattr(type(served.denoiser), "__call__", limited)
        return sizes

    return install


def test_one_job_s_failure_is_no_other_s(
    stopped: Stopped, claimed: Claimed, fails_above: Callable[..., list[int]]
) -> None:
    good = claimed("generate", count=2, seed=1, sampler=DDPM)
    bad = claimed("generate", count=3, seed=2, sampler=DDPM)
    fails_above(2, RuntimeError("three rows are too many"))
    stopped.run(good, bad)
    assert stopped.job(good).status is Status.SUCCEEDED
    failed = stopped.job(bad)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert "three rows" in failed.error["detail"]


def test_a_call_that_runs_out_of_memory_is_halved_from_then_on(
    stopped: Stopped, claimed: Claimed, fails_above: Callable[..., list[int]]
) -> None:
    jobs = [claimed("generate", count=16, seed=seed, sampler=DDPM) for seed in range(4)]
    sizes = fails_above(40, torch.OutOfMemoryError("64 rows are too many"))
    stopped.run(*jobs)
    assert [stopped.job(job).status for job in jobs] == [Status.SUCCEEDED] * 4
    assert sizes[:3] == [64, 32, 32]
    assert max(sizes[3:]) == 32


def test_what_fails_for_lack_of_memory_alone_says_so(
    stopped: Stopped, claimed: Claimed, fails_above: Callable[..., list[int]]
) -> None:
    claim = claimed("generate", count=4, seed=1, sampler=DDPM)
    fails_above(3, torch.OutOfMemoryError("four rows are too many"))
    stopped.run(claim)
    job = stopped.job(claim)
    assert job.error is not None
    assert job.error["title"] == "Out of memory"


def test_a_large_job_advances_in_parts_and_comes_back_whole(
    stopped: Stopped, claimed: Claimed, calls: list[int]
) -> None:
    large = claimed("generate", count=100, seed=1, sampler=DDPM, format="npy")
    stopped.run(large)
    assert max(calls) <= KNEE
    assert sum(calls) == 100 * 12
    alone = claimed(
        "generate", count=1, seeds=[image_seeds(1, 100)[77]], sampler=DDPM, format="npy"
    )
    stopped.run(alone)
    images, image = (
        np.load(io.BytesIO(stopped.artifact(claim, "images.npy"))) for claim in (large, alone)
    )
    assert len(images) == 100
    assert np.abs(images[77] - image[0]).max() < 1e-9


def test_nothing_stays_behind_when_all_jobs_have_left(
    stopped: Stopped, claimed: Claimed, points: Points
) -> None:
    leaves = claimed("generate", count=40, seed=1, sampler=DDPM)
    stopped.admit(leaves)
    stopped.engine.tick()
    stopped.engine.stop_job(leaves, "requested")
    stopped.run(claimed("invert", levels(points(3))), claimed("loglik", levels(points(20)), seed=0))
    assert stopped.engine.idle


def test_guided_rows_count_twice_in_a_call(
    stopped: Stopped, claimed: Claimed, calls: list[int]
) -> None:
    jobs = [
        claimed("generate", count=16, seed=seed, sampler=DDPM, class_label=1, guidance=3.0)
        for seed in range(3)
    ]
    stopped.run(*jobs)
    assert max(calls) == KNEE


def test_an_answer_that_is_not_finite_fails_its_job_with_the_reason(
    stopped: Stopped, claimed: Claimed
) -> None:
    claim = claimed("invert", pack({"levels": np.full((1, *SHAPE), np.nan)}))
    stopped.run(claim)
    job = stopped.job(claim)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error["title"] == "Not finite"
    assert "images [0]" in job.error["detail"]


def test_a_job_with_impossible_parameters_fails_and_says_why(
    stopped: Stopped, claimed: Claimed
) -> None:
    claim = claimed("generate", count=0)
    stopped.run(claim)
    job = stopped.job(claim)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert "count" in job.error["detail"]


def test_stopping_hands_running_and_waiting_jobs_back(stopped: Stopped, claimed: Claimed) -> None:
    long = {"name": "ddpm", "steps": 4000}
    running, waiting, late = (
        claimed("generate", count=2, seed=seed, sampler=long) for seed in (1, 2, 3)
    )
    stopped.admit(running)
    stopped.engine.tick()
    stopped.admit(waiting)
    stopped.engine.stop()
    stopped.admit(late)
    stopped.delivered()
    for claim in (running, waiting, late):
        job = stopped.job(claim)
        assert job.status is Status.QUEUED
        assert job.attempt == 1
    assert stopped.engine.wait_for_room() is False


def test_there_is_room_for_new_jobs_only_below_the_limit(
    stopped: Stopped, claimed: Claimed
) -> None:
    assert stopped.engine.rooms() == {"interactive": ROOM * KNEE, "batch": ROOM * KNEE}
    stopped.admit(claimed("generate", count=ROOM * KNEE, seed=1, priority="batch", sampler=DDPM))
    for _ in range(2):
        assert stopped.engine.rooms() == {"interactive": ROOM * KNEE, "batch": 0}
        stopped.engine.tick()
    assert stopped.engine.wait_for_room()
    stopped.run()
    assert stopped.engine.rooms()["batch"] == ROOM * KNEE


def test_an_engine_of_one_job_at_a_time_takes_no_second(
    shelf: Shelf, served: ServedModel, claimed: Claimed
) -> None:
    engine = Engine(shelf, Courier(), most_jobs=1)
    assert engine.wait_for_room(0.0)
    claim = claimed("generate", count=1, seed=1, sampler=DDPM)
    engine.admit(claim, None)
    assert not engine.wait_for_room(0.0)


class Loading(Shelf):
    """A shelf whose model is not there yet, until `arrive` is called."""

    def __init__(self, shelf: Shelf) -> None:
        self.__dict__ = dict(shelf.__dict__)
        self.here = False
        self.ready: list[Callable[[], None]] = []

    def request(self, digest: str, ready: Callable[[], None]) -> ServedModel | None:
        if self.here:
            return super().request(digest, ready)
        self.ready.append(ready)
        return None

    def arrive(self) -> None:
        self.here = True
        for ready in self.ready:
            ready()


def test_a_job_that_waits_for_its_model_is_kept_alive_and_starts_when_it_is_there(
    stopped: Stopped, shelf: Shelf, claimed: Claimed
) -> None:
    loading = Loading(shelf)
    stopped.engine = Engine(loading, stopped.courier)
    claim = claimed("generate", count=3, seed=1, sampler=DDPM)
    stopped.admit(claim)
    stopped.engine.tick()
    assert stopped.engine.claims() == [claim]
    assert stopped.engine.rooms()["interactive"] == ROOM * KNEE - 3
    loading.arrive()
    stopped.run()
    assert stopped.job(claim).status is Status.SUCCEEDED


def test_a_deadline_ends_a_job_between_two_ticks_and_leaves_the_others(
    stopped: Stopped, claimed: Claimed
) -> None:
    late = claimed("generate", count=3, seed=1, sampler=DDPM, cancel_after=0.5)
    other = claimed("generate", count=2, seed=2, sampler=DDPM, cancel_after=1000.0)
    stopped.admit(late)
    stopped.admit(other)
    stopped.engine.tick()
    assert len(stopped.engine.claims()) == 2
    time.sleep(0.5)
    stopped.engine.tick()
    assert stopped.engine.claims() == [other]
    stopped.run()
    assert stopped.job(late).status is Status.CANCELED
    assert stopped.job(late).cancel_reason == "deadline"
    assert stopped.job(other).status is Status.SUCCEEDED


@pytest.mark.parametrize("reason", ["requested", "deadline", "lost"])
def test_a_job_that_waits_for_its_model_can_be_stopped(
    stopped: Stopped, shelf: Shelf, claimed: Claimed, reason: str
) -> None:
    loading = Loading(shelf)
    stopped.engine = Engine(loading, stopped.courier)
    claim = claimed("generate", count=3, seed=1, sampler=DDPM)
    stopped.admit(claim)
    stopped.engine.stop_job(claim, reason)
    assert stopped.engine.idle
    loading.arrive()
    stopped.run()
    expected = Status.RUNNING if reason == "lost" else Status.CANCELED
    assert stopped.job(claim).status is expected


def test_a_failed_update_fails_the_jobs_of_its_call_and_no_other(
    stopped: Stopped, claimed: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = claimed("generate", count=2, seed=1, sampler=DDPM)
    decoded = claimed(
        "generate",
        count=1,
        seed=1,
        sampler={"name": "pf_ode", "solver": {"name": "heun", "steps": 3}},
    )

    def broken(*arguments: object) -> None:
        raise RuntimeError("the device is gone")

    stopped.admit(plain)
    stopped.engine.tick()
    with monkeypatch.context() as patched:
        patched.setattr(FollowingRows, "tell", broken)
        stopped.engine.tick()
    stopped.run(decoded)
    failed = stopped.job(plain)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert "device is gone" in failed.error["detail"]
    assert stopped.job(decoded).status is Status.SUCCEEDED
    assert stopped.engine.idle


def test_a_job_that_cannot_be_taken_onto_the_device_fails_alone(
    stopped: Stopped, claimed: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = FollowingRows.admit

    def full(self: FollowingRows, course: Follow, rows: slice) -> object:
        if rows.start >= 16:
            raise torch.OutOfMemoryError("no slot left")
        return admit(self, course, rows)

    monkeypatch.setattr(FollowingRows, "admit", full)
    large = claimed("generate", count=40, seed=1, sampler=DDPM)
    small = claimed("generate", count=2, seed=1, sampler=DDPM)
    stopped.run(large, small)
    error = stopped.job(large).error
    assert error is not None
    assert error["title"] == "Out of memory"
    assert stopped.job(small).status is Status.SUCCEEDED
    assert stopped.engine.idle


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytearray]:
    """Who is busy of two processes on two cores."""
    monkeypatch.setattr(threads, "CORES", 2)
    before = torch.get_num_threads()
    yield bytearray(2)
    torch.set_num_threads(before)


def test_while_it_has_rows_it_takes_the_cores_that_the_other_process_leaves(
    models: Path, two_cores: bytearray, stopped: Stopped, claimed: Claimed
) -> None:
    curve = Curve((1, KNEE), (0.001, 0.008))
    shelf = Shelf(
        models,
        torch.device("cpu"),
        curves=Curves(measure=lambda *_: curve),
        cores=SharedCores(two_cores, 0),
    )
    (served,) = shelf.models.values()
    seen: list[tuple[int, int]] = []

    def look(*_: object) -> None:
        seen.append((two_cores[0], torch.get_num_threads()))
        two_cores[1] = len(seen) >= 6  # from the seventh call on the other one is busy, too

    served.checkpoint.network.register_forward_hook(look)
    engine = Engine(shelf, stopped.courier)
    claim = claimed("generate", count=1, seed=1, sampler=DDPM)
    engine.start()
    try:
        engine.admit(claim, claim.inputs())
        wait_until(lambda: not two_cores[0] and seen, "the engine to have nothing to do")
    finally:
        engine.stop()
    assert seen == [(1, 2)] * 6 + [(1, 1)] * 6


def test_one_batch_alone_is_claimed_ahead_while_the_other_process_has_nothing_to_do(
    models: Path, two_cores: bytearray, stopped: Stopped
) -> None:
    shelf = Shelf(models, torch.device("cpu"), cores=SharedCores(two_cores, 0))
    engine = Engine(shelf, stopped.courier)
    found = {}
    for busy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        two_cores[:] = bytes(busy)
        found[busy] = set(engine.rooms().values())
    one, many = {64}, {ROOM * 64}
    assert found == {(0, 0): one, (1, 0): one, (0, 1): many, (1, 1): many}


@pytest.mark.usefixtures("two_cores")
def test_a_call_holds_more_rows_and_a_row_costs_less_on_more_cores(
    stopped: Stopped, served: ServedModel, claimed: Claimed
) -> None:
    """Of plain rows in proportion to the measured share; of reproducible ones a bucket a core."""
    stopped.admit(claimed("generate", count=1, seed=1, sampler=DDPM))
    stopped.engine.tick()
    digest, bucket = served.header.digest, served.denoiser.bucket
    plain = Lane(digest, reproducible=False, divergence=None)
    exact = Lane(digest, reproducible=True, divergence=None)
    likelihood = Lane(digest, reproducible=True, divergence=8)
    share = stopped.engine._shelf.cores.share
    found = {}
    for cores in (share, 2 * share):
        with exactly(cores):
            found[cores] = [
                (stopped.engine._capacity(lane), stopped.engine._cost(lane, rows))
                for lane, rows in ((plain, KNEE), (exact, 8 * bucket), (likelihood, 8 * bucket))
            ]
    assert found[share][0] == (KNEE, 0.008)
    assert found[2 * share][0] == (2 * KNEE, served.curve.seconds_for(KNEE // 2))
    for (rows, seconds), (more, less) in zip(found[share][1:], found[2 * share][1:], strict=True):
        assert (rows, more) == (bucket * share, 2 * bucket * share)
        assert less < 0.7 * seconds
    forward = served.curve.seconds_for(bucket)
    assert served.curve.gradient_seconds is not None
    assert found[share][2][1] > 0.9 * (8 // share) * served.curve.gradient_seconds > 5 * forward

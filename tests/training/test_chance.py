import math

import pytest
import torch

from model.noise import Stream
from training.chance import Order, Rows, shift

CPU = torch.device("cpu")


def rows(first: int = 0, count: int = 64, step: int = 3, seed: int = 5) -> Rows:
    return Rows(seed=seed, step=step, first=first, count=count, device=CPU)


def test_a_number_belongs_to_its_place_however_the_batch_is_cut() -> None:
    whole = rows().normal(Stream.EPS, (2, 3))
    parts = [rows(first, 16).normal(Stream.EPS, (2, 3)) for first in (0, 16, 32, 48)]
    assert torch.equal(torch.cat(parts), whole)
    assert rows().seeds(Stream.DROPOUT)[48:] == rows(48, 16).seeds(Stream.DROPOUT)


@pytest.mark.parametrize("other", [rows(step=4), rows(seed=6), rows(first=64)])
def test_another_step_seed_or_place_has_other_numbers(other: Rows) -> None:
    assert not (rows().uniform(Stream.LABEL) == other.uniform(Stream.LABEL)).any()
    assert not set(rows().seeds(Stream.DROPOUT)) & set(other.seeds(Stream.DROPOUT))


def test_numbers_are_spread_as_they_should_be() -> None:
    n = 20_000
    u = rows(count=n).uniform(Stream.FLIP)
    assert abs(float(u.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / n)
    shifts = torch.tensor([shift(1, step) for step in range(400)])
    assert abs(float(shifts.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 400)


def test_every_image_comes_once_before_any_comes_again() -> None:
    order = Order(seed=1, images=10, batch_size=4)
    seen = torch.cat([order.rows(step, 0, 4) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_the_order_needs_no_history() -> None:
    order = Order(seed=1, images=10, batch_size=4)
    for step in range(40):
        order.rows(step, 0, 4)
    fresh = Order(seed=1, images=10, batch_size=4)
    assert torch.equal(fresh.rows(40, 2, 2), order.rows(40, 0, 4)[2:])
    assert torch.equal(fresh.rows(1, 0, 4), Order(seed=1, images=10, batch_size=4).rows(1, 0, 4))


def test_a_batch_may_be_larger_than_the_data() -> None:
    found = Order(seed=1, images=3, batch_size=8).rows(0, 0, 8)
    assert sorted(found.bincount().tolist()) == [2, 3, 3]

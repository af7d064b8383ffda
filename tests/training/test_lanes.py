"""Cores that share a batch: the same steps, and a stopped run goes on to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training import runs
from training import run
from training.lanes import Lanes

CPU = torch.device("cpu")
TWO = {"threads": 2, "batch_size": 18, "learning_rate": 3e-4}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def lanes(threads: int, rows: int, device: torch.device = CPU, alone: bool = False) -> Lanes:
    torch.set_num_threads(threads)
    network = nn.Linear(3, 2)
    return Lanes(network, rows, (1, 8, 8), device, alone=alone, channels_last=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_lanes_train_as_one_does(tmp_path: Path, accumulate: int) -> None:
    more = {"data": {"flip": True}, "objective": {"by_loss_history": True}}
    for name, count in (("one", 1), ("two", 2)):
        train = TWO | {"threads": count, "accumulate": accumulate}
        run.fit(runs.config(**more, train=train), tmp_path / name)
    runs.require_close(tmp_path / "two", tmp_path / "one")


def test_a_run_of_two_lanes_goes_on_to_the_bit(tmp_path: Path) -> None:
    half = TWO | {"schedule": "constant", "steps": 6}
    run.fit(runs.config(train=half), tmp_path / "resumed")
    run.fit(runs.config(train=half | {"steps": 12}), tmp_path / "resumed", resume=True)
    run.fit(runs.config(train=half | {"steps": 12}), tmp_path / "undisturbed")
    ours, theirs = runs.weights(tmp_path / "resumed"), runs.weights(tmp_path / "undisturbed")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("threads", "rows", "counts"),
    [(2, 18, [9, 9]), (3, 16, [6, 5, 5]), (4, 8, [4, 4]), (4, 6, [6])],
)
def test_every_row_is_in_one_lane(threads: int, rows: int, counts: list[int]) -> None:
    found = lanes(threads, rows).all
    assert [lane.count for lane in found] == counts
    assert [lane.first for lane in found] == [sum(counts[:n]) for n in range(len(counts))]


def test_lanes_share_the_threads_there_are() -> None:
    assert lanes(4, 8).run(lambda lane: torch.get_num_threads()) == [2, 2]
    assert torch.get_num_threads() == 4


def test_who_shares_the_batch_otherwise_has_one_lane() -> None:
    assert len(lanes(2, 16, alone=True).all) == 1
    assert len(lanes(2, 16, torch.device("meta")).all) == 1


def test_weights_are_everybody_s_and_gradients_add_up() -> None:
    torch.manual_seed(0)
    split = lanes(2, 8)
    first, second = (lane.network for lane in split.all)
    x = torch.randn(8, 3)
    split.run(lambda lane: lane.network(x[lane.first :][: lane.count]).square().sum().backward())
    split.add_gradients()
    found = [weight.grad for weight in first.parameters()]
    first.zero_grad()
    first(x).square().sum().backward()
    for got, weight in zip(found, first.parameters(), strict=True):
        torch.testing.assert_close(got, weight.grad)
    with torch.no_grad():
        first.weight.fill_(3.0)
    assert (second.weight == 3.0).all()
    split.forget_gradients()
    assert all(weight.grad is None for lane in split.all for weight in lane.network.parameters())


def test_what_fails_in_a_lane_fails_the_step() -> None:
    def work(lane: object) -> None:
        raise ArithmeticError("in a lane")

    with pytest.raises(ArithmeticError, match="in a lane"):
        lanes(2, 8).run(work)

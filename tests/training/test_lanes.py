"""Cores that share a batch: the same steps, and a stopped run goes on to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training import runs
from training import build, data, run
from training.lanes import Lanes
from training.parallel import World
from training.trainer import Trainer

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
    [(2, 18, [9, 9]), (3, 16, [6, 5, 5]), (4, 8, [8]), (12, 32, [32]), (17, 170, [170])],
)
def test_every_row_is_in_one_lane(threads: int, rows: int, counts: list[int]) -> None:
    found = lanes(threads, rows).all
    assert [lane.count for lane in found] == counts
    assert [lane.first for lane in found] == [sum(counts[:n]) for n in range(len(counts))]


def test_a_lane_has_one_thread() -> None:
    assert lanes(3, 12).run(lambda lane: torch.get_num_threads()) == [1, 1, 1]
    assert torch.get_num_threads() == 3


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


def test_a_weight_that_no_gradient_comes_to_is_named() -> None:
    split = lanes(2, 8)
    split.all[0].network(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="no gradient has come to weight, bias"):
        split.add_gradients()


@pytest.mark.parametrize(("compile_", "count"), [(False, 2), (True, 1)])
def test_a_trainer_has_a_lane_a_thread_unless_it_compiles(
    monkeypatch: pytest.MonkeyPatch, compile_: bool, count: int
) -> None:
    monkeypatch.setattr("training.trainer.can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    config = runs.config(train=TWO | {"compile": compile_})
    torch.set_num_threads(2)
    dataset = data.digits(0.02)
    architecture = build.make_architecture(config.model, dataset.spec)
    alone = World(rank=0, size=1, device=CPU)
    trainer = Trainer(config, dataset, build.make_process(config), architecture, alone)
    assert len(trainer._lanes.all) == count


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_lanes_train_in_low_precision(tmp_path: Path, precision: str) -> None:
    low = {"precision": precision, "channels_last": True, "steps": 40}
    run.fit(runs.config(train=TWO | low), tmp_path)
    losses = runs.losses(tmp_path)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_what_fails_in_a_lane_fails_the_step() -> None:
    def work(lane: object) -> None:
        raise ArithmeticError("in a lane")

    with pytest.raises(ArithmeticError, match="in a lane"):
        lanes(2, 8).run(work)

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.network import inputs
from model.inference import prepare
from model.lean import lean
from model.unet import UNet, UNetConfig
from tests.model.networks import random_network

ATTENDS = UNetConfig(
    in_channels=3, channels=(16, 32), attention=(0,), classes=4, head_channels=16, dropout=0.5
)
PLAIN = UNetConfig(in_channels=1, channels=(16,), head_channels=16)


@pytest.mark.parametrize("config", [ATTENDS, PLAIN])
@pytest.mark.parametrize("rows", [1, 5])
def test_lean_network_is_the_network_to_the_bit(config: UNetConfig, rows: int) -> None:
    network = random_network(config)
    asked = inputs(config, rows, 8)
    with torch.no_grad():
        assert torch.equal(lean(network)(*asked), network(*asked))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_network_answers_without_its_modules_and_to_the_bit(dtype: torch.dtype) -> None:
    network = prepare(random_network(ATTENDS), dtype=dtype)
    assert isinstance(network, UNet)
    asked = inputs(ATTENDS, 4, 8)
    called: list[nn.Module] = []
    network.middle[0].conv1.register_forward_hook(lambda module, *_: called.append(module))
    with torch.no_grad():
        found = network(*asked)
        assert called == []
        assert torch.equal(found, UNet.forward(network, *asked))
    assert len(called) == 1
    network(*asked)
    assert len(called) == 2, "with gradients, modules are called"


def test_weights_that_are_changed_later_are_those_that_answer() -> None:
    def larger() -> UNet:
        other = random_network(ATTENDS)
        for weight in other.parameters():
            weight.mul_(1.5)
        return other

    asked = inputs(ATTENDS, 4, 8)
    with torch.no_grad():
        expected = prepare(larger())(*asked)
        loaded, applied = prepare(random_network(ATTENDS)), prepare(random_network(ATTENDS))
        for network in (loaded, applied):
            assert not torch.equal(network(*asked), expected)
        loaded.load_state_dict(larger().state_dict())
        applied._apply(lambda weight: weight * 1.5)
        for network in (loaded, applied, copy.deepcopy(loaded)):
            assert torch.equal(network(*asked), expected)


def test_parameters_are_shared_and_parts_without_hooks_are_called_by_name() -> None:
    class Doubled(nn.Linear):
        factor = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * self.scaled(nn.Linear.forward(self, x))

        @staticmethod
        def scaled(x: Tensor) -> Tensor:
            return x + 1.0

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Doubled(3, 3, bias=False)
            self.rest = nn.Sequential(nn.SiLU(), nn.Linear(3, 2))
            self.nothing = None
            self.drop = nn.Dropout(0.9)
            self.register_buffer("shift", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            assert self.nothing is None
            out: Tensor = self.rest(self.drop(self.first(x))) + self.shift
            return out

    both = Both().eval().requires_grad_(False)
    x, own = torch.randn(4, 3), lean(both)
    assert torch.equal(own(x), both(x))
    both.first.weight.mul_(2.0)
    assert torch.equal(own(x), both(x))
    for part in (both.first, both.rest, both.rest[1]):
        part.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    own(x)


def test_an_answer_may_be_changed_and_used_where_gradients_are_asked_for() -> None:
    network = prepare(random_network(PLAIN))
    with torch.no_grad():
        found = network(*inputs(PLAIN, 2, 8))
    found += 1.0
    weight = torch.ones((), requires_grad=True)
    (weight * found).sum().backward()
    assert weight.grad == found.sum()

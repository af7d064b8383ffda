import math

import pytest
import torch
from torch import nn

from model.unet import UNet, UNetConfig
from training.chance import Rows
from training.dropout import Dropout, Masked

CPU = torch.device("cpu")
CONFIG = UNetConfig(in_channels=1, channels=(16, 32), blocks=1, head_channels=16, dropout=0.25)


def rows(first: int, count: int) -> Rows:
    return Rows(seed=1, step=2, first=first, count=count, device=CPU)


def masked(count: int, channels_last: bool = False) -> tuple[nn.Module, Dropout]:
    torch.manual_seed(0)
    network = UNet(CONFIG).train()
    return network, Dropout(network, count, (1, 8, 8), CPU, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_gets_its_masks_wherever_it_is_in_a_batch(channels_last: bool) -> None:
    whole, drawn = masked(8, channels_last)
    drawn.draw(rows(0, 8))
    part, drawn = masked(2, channels_last)
    drawn.draw(rows(4, 2))
    u = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    ask = torch.zeros(8), torch.zeros(8).long()
    found, wanted = part(u[4:6], ask[0][:2], ask[1][:2]), whole(u, *ask)[4:6]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, whole(u, *ask)[:2], atol=1e-2)


def test_masks_keep_the_share_and_the_mean() -> None:
    network, dropout = masked(64)
    dropout.draw(rows(0, 64))
    layers = [module for module in network.modules() if isinstance(module, Masked)]
    assert len(layers) == 8
    values = torch.cat([layer.mask.flatten() for layer in layers])
    assert set(values.unique().tolist()) == {0.0, values.max().item()}
    n, keep = len(values), 0.75
    assert abs(float((values > 0).double().mean()) - keep) < 4 * math.sqrt(keep * (1 - keep) / n)
    assert math.isclose(float(values.max()), 1 / keep, rel_tol=1e-6)


def test_nothing_is_dropped_while_evaluating() -> None:
    network, dropout = masked(4)
    dropout.draw(rows(0, 4))
    torch.manual_seed(0)
    plain = UNet(CONFIG).eval()
    u, ask = torch.randn(4, 1, 8, 8), (torch.zeros(4), torch.zeros(4).long())
    assert torch.equal(network.eval()(u, *ask), plain(u, *ask))


def test_a_network_without_dropout_is_left_alone() -> None:
    network = UNet(UNetConfig(in_channels=1, channels=(16,), blocks=1, head_channels=16))
    Dropout(network, 4, (1, 8, 8), CPU).draw(rows(0, 4))
    assert not any(isinstance(module, Masked) for module in network.modules())

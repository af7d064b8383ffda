"""Networks that tests of several modules ask."""

from pathlib import Path

import torch
from torch import Tensor, nn

import model
from model import checkpoint
from model.unet import UNet, UNetConfig

SHIPPED = Path(model.__file__).parent / "zoo" / "digits.safetensors"
SMALL = UNetConfig(
    in_channels=3, channels=(16, 32, 32), attention=(1,), classes=4, head_channels=16
)


def shipped() -> UNet:
    network = checkpoint.load(SHIPPED).network.eval().requires_grad_(False)
    assert isinstance(network, UNet)
    return network


def random_network(config: UNetConfig = SMALL) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


def assert_same_up_to_rounding(found: Tensor, expected: Tensor) -> None:
    """Within 2e-6 of the largest value, which is a few times the eps of its float32 terms."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * scale)


class Recorder(nn.Module):
    """A row's answer is its sum; remembers the sizes it was called at."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        self.sizes.append(len(u))
        return u * 2 + log_snr[:, None, None, None] + label[:, None, None, None]

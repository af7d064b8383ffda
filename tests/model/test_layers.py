import copy

import pytest
import torch
from torch import nn

from model.layers import ChannelsLastGroupNorm, PackedConv2d, can_pack


def convolutions(**options: int) -> tuple[nn.Conv2d, PackedConv2d]:
    """A plain one and a packed one of the same weights, channels-last, without gradients."""
    torch.manual_seed(0)
    plain, packed = nn.Conv2d(16, 48, **options), PackedConv2d(16, 48, **options)  # type: ignore[arg-type]
    packed.load_state_dict(plain.state_dict())
    for module in (plain, packed):
        module.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return plain, packed


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1},
    ],
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_packed_convolution_is_the_plain_one(
    rows: int, options: dict[str, int], dtype: torch.dtype, most: float
) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN has no {dtype} for this processor")
    plain, packed = (module.to(dtype) for module in convolutions(**options))
    with torch.no_grad():
        for side in (8, 64):  # packed once, for images of any size
            x = torch.randn(rows, 16, side, side, dtype=dtype)
            torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=most)
    assert packed.derived is not None


def test_weights_that_are_loaded_later_are_packed_anew() -> None:
    plain, packed = convolutions(kernel_size=3)
    x = torch.randn(8, 16, 8, 8)
    with torch.no_grad():
        packed(x)
        doubled = {name: 2.0 * weight for name, weight in plain.state_dict().items()}
        for module in (plain, packed):
            module.load_state_dict(doubled)
        torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=4e-6)
        torch.testing.assert_close(copy.deepcopy(packed)(x), plain(x), rtol=0, atol=4e-6)
        twice = packed.double()(x.double())
        torch.testing.assert_close(twice, plain.double()(x.double()), rtol=0, atol=1e-13)


def test_a_row_of_the_own_norm_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    norm = ChannelsLastGroupNorm(8, 48)
    x = torch.randn(64, 48, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        first = norm(x)
        for shift in (1, 7, 33):
            assert torch.equal(norm(x.roll(shift, 0)).roll(-shift, 0), first)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_own_norm_is_group_norm(mean: float) -> None:
    torch.manual_seed(0)
    plain, own = nn.GroupNorm(8, 48), ChannelsLastGroupNorm(8, 48)
    for norm in (plain, own):
        norm.weight.data, norm.bias.data = torch.linspace(0.5, 2, 48), torch.linspace(-1, 1, 48)
    x = (torch.randn(64, 48, 8, 8) + mean).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = (
            own(x),
            nn.functional.group_norm(x.double(), 8, plain.weight.double(), plain.bias.double()),
        )
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((found - expected).abs().max()) < 1e-5
    assert not torch.equal(found, plain(x)), "the own computation did not run"

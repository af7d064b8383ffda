"""Layers of a U-Net as a server calls them, in the places of torch's own.

A module of torch's is given one of these classes (`module.__class__ = …`): its parameters, their
names and shapes stay. `forward` must be callable from what is no `nn.Module` (`model.lean`): no
`super()`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

VECTOR = 8
"""Channels a group below which torch's channels-last kernel does not fill its vectors."""

LARGE = 1 << 16
"""Values an input from which fewer passes over it outweigh more calls."""

FEW = 1 << 14
"""Values of a single image up to which torch convolves faster without oneDNN."""


class Deriving(nn.Module):
    """Keeps what is derived from its weights: it goes when they change, and is not copied."""

    derived: Any = None

    def _apply(self, *how: Any, **options: Any) -> Any:
        self.derived = None
        return super()._apply(*how, **options)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *what: Any, **options: Any) -> None:
        self.derived = None
        super()._load_from_state_dict(*what, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"derived": None}


class PackedConv2d(Deriving, nn.Conv2d):
    """A convolution on a processor, whose weights are packed for oneDNN once, in the first call.

    torch packs them in every call, which is a tenth of the time of eight digits' with AVX-512. It
    does so still where gradients are asked for; a compiler packs for itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (rows, channels, H, W)."""
        if not self._packs(x):
            return nn.Conv2d.forward(self, x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        packed = self.derived
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape)
            self.derived = packed
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, packed, self.bias, *how, "none", [], ""
        )
        return out

    @staticmethod
    def _packs(x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        few = len(x) == 1 and x.numel() <= FEW and x.dtype == torch.float32
        return not few and can_pack(x.dtype)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN, and that convolutions of this dtype for this processor."""
    weight = torch.zeros(16, 16, 3, 3, dtype=dtype)
    one = (1, 1)
    try:
        torch.ops.mkldnn._reorder_convolution_weight(weight, one, one, one, 1, (2, 16, 8, 8))
    except (RuntimeError, AttributeError):  # of a processor, and of a torch without it
        return False
    return True


class LowConv2d(PackedConv2d):
    """A convolution in its weights' dtype, float32 in and out."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (rows, channels, H, W)."""
        return PackedConv2d.forward(self, x.to(self.weight.dtype)).float()


class LowLinear(nn.Linear):
    """A linear map in its weights' dtype, of which its output stays."""

    def forward(self, x: Tensor) -> Tensor:
        """The map of x (…, features)."""
        return nn.Linear.forward(self, x.to(self.weight.dtype))


class UncheckedGroupNorm(nn.GroupNorm):
    """GroupNorm that does not look first whether each group has several values, as a U-Net's do."""

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x (rows, channels, H, W)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ChannelsLastGroupNorm(UncheckedGroupNorm):
    """GroupNorm for large channels-last inputs and groups of a few channels, without gradients.

    torch's kernel reads one group at a time: of 48 channels in 8 groups, 6 neighbours. Here all
    channels of a pixel are summed together, and groups are formed from those few sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x (rows, channels, H, W)."""
        own = x.numel() >= LARGE and x.is_contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() or not own:
            return UncheckedGroupNorm.forward(self, x)
        rows, channels, height, width = x.shape
        grouped = (self.num_groups, channels // self.num_groups)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (rows, pixels, channels), no copy
        moments = torch.stack((pixels.mean(1), pixels.square().mean(1)))
        mean, square = moments.view(2, rows, *grouped).mean(3, keepdim=True)
        variance = torch.addcmul(square, mean, mean, value=-1.0).clamp_(min=0.0)
        scale = (variance + self.eps).rsqrt_() * self.weight.view(grouped)
        shift = torch.addcmul(self.bias.view(grouped), mean, scale, value=-1.0)
        out = torch.addcmul(shift.view(rows, 1, channels), pixels, scale.view(rows, 1, channels))
        return out.view(rows, height, width, channels).permute(0, 3, 1, 2)

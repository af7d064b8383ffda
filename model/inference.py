"""What a serving process does to a network once, when it loads it.

In float32 nothing here changes what a network computes: outputs move by some 1e-6 (of 36 million
parameters by 4e-6), and a checkpoint's keys and shapes stay. It changes how: weights and
activations lie channels-last; a processor's convolutions have their weights packed once; group
norms that torch's kernel is slow at have one of their own; where bf16 is asked for, a processor
computes the products in it and the rest in float32; calls go without modules (`model.lean`); or,
where asked and a C++ compiler is there, they run compiled. Cores may share a batch by its rows.
`benchmarks/network.py` measures it against diffusers' `UNet2DModel`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.compiled import Shape, can_compile, compiled_for_cores, compiled_for_gpu
from model.layers import (
    VECTOR,
    ChannelsLastGroupNorm,
    Deriving,
    LowConv2d,
    LowLinear,
    PackedConv2d,
    UncheckedGroupNorm,
)
from model.lean import lean
from model.unet import Attention, UNet


def prepare(
    network: nn.Module,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compile_for: Shape | None = None,
) -> nn.Module:
    """A U-Net made ready to serve, changed in place; any other network is returned untouched.

    It is called as before, with float32 in and out; its weights must not change in place any more.
    dtype: of convolutions, norms and attention; the embedding of the noise level, which spans
    1 … 1000, stays float32. Calls without gradients run fastest; with gradients the same weights
    run eagerly.

    compile_for: the (C, H, W) of the images for which it is compiled by `torch.compile`, here and
    now: on a CPU for any number of rows, which takes about a minute, on a GPU for
    `model.compiled.SIZES`, to which rows are padded. The answer to a row is the same to the bit
    within one size only.

    Raises ValueError where it is to be compiled and `can_compile` says no.
    """
    if not isinstance(network, UNet):
        return network
    network.eval().requires_grad_(False).to(device)
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu:
        _pack_convolutions(network)
    if dtype != torch.float32:
        (_lower_products if on_cpu else _lower)(network, dtype)
    if compile_for is None:
        _replace_norms(network, on_cpu)
        network.__class__ = LeanUNet
        return network
    if not can_compile():
        raise ValueError(
            "compiling a network needs a C++ compiler: install g++, name one in CXX, or do not ask "
            "for it"
        )
    compiled = compiled_for_cores if on_cpu else compiled_for_gpu
    return compiled(network, compile_for, torch.device(device))


class LeanUNet(Deriving, UNet):
    """A U-Net that is called without its modules where no gradients are asked for."""

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the U-Net's."""
        if torch.is_grad_enabled():
            return UNet.forward(self, u, log_snr, label)
        own = self.derived
        if own is None:  # several threads may be here at once
            own = self.derived = lean(self, UNet)
        with torch.inference_mode():
            out: Tensor = own(u, log_snr, label)
        return out.clone()  # what callers may change, and use where gradients are asked for


def _pack_convolutions(network: UNet) -> None:
    """The class alone changes, here and below: parameters, their names and shapes stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = PackedConv2d


def _lower_products(network: UNet, dtype: torch.dtype) -> None:
    """Convolutions and attention between stem and head; what they give is added up in float32."""
    for module in _between(network):
        if isinstance(module, nn.Conv2d):
            module.__class__ = LowConv2d
            module.to(dtype)
        elif isinstance(module, Attention):
            for linear in (module.qkv, module.out):
                linear.__class__ = LowLinear
                linear.to(dtype)


def _lower(network: UNet, dtype: torch.dtype) -> None:
    """All between stem and head; statistics of norms stay float32 all the same."""
    for module in (*_between(network), network.norm):
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.to(dtype)
        elif isinstance(module, Attention):
            module.qkv.to(dtype)
            module.out.to(dtype)


def _between(network: UNet) -> Iterator[nn.Module]:
    """Every module between stem and head, the last norm left out."""
    for part in (
        network.down,
        network.downsample,
        network.middle,
        network.middle_attention,
        network.up,
        network.upsample,
    ):
        yield from part.modules()


def _replace_norms(network: UNet, on_cpu: bool) -> None:
    # With AVX-512, a dozen calls in place of torch's kernel keep the interpreter from the other
    # cores' threads for longer than they save.
    slow = on_cpu and torch.backends.cpu.get_cpu_capability() != "AVX512"
    for norm in network.modules():
        if type(norm) is nn.GroupNorm:
            narrow = (norm.num_channels // norm.num_groups) % VECTOR
            norm.__class__ = ChannelsLastGroupNorm if slow and narrow else UncheckedGroupNorm

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

import os
import shutil
import sys
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.cores import exactly, side_by_side
from model.denoiser import Network
from model.lean import lean
from model.unet import Attention, UNet

SIZES = (1, 4, 16, 64)
"""Batch sizes that are compiled on a GPU; a batch between two is padded to the larger."""

RANGES = (1, 2, 16)
"""Rows from which on a network is compiled anew on a CPU: one row is a case of its own, and from 16
on torch takes another kernel for the convolutions of one pixel."""

VECTOR = 8
"""Channels a group below which torch's channels-last kernel does not fill its vectors."""

LARGE = 1 << 16
"""Values an input from which fewer passes over it outweigh more calls."""

FEW = 1 << 14
"""Values of a single image up to which torch convolves faster without oneDNN."""

PIECE = 1 << 10
"""Values of a batch from which a core of its own is worth while."""

EAGER = 1 << 12
"""Values from which a batch is shared at all where nothing is compiled: below, threads that wait
for the interpreter between operations lose more than those that share each operation."""

Shape = tuple[int, ...]


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
    now: on a CPU for any number of rows, which takes about a minute, on a GPU for `SIZES`, to
    which rows are padded. The answer to a row is the same to the bit within one size only.

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
    compiled = _compiled_for_cores if on_cpu else _compiled_for_gpu
    return compiled(network, compile_for, torch.device(device))


def can_compile() -> bool:
    """Whether there is a C++ compiler for `torch.compile` to call."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


class LeanUNet(UNet):
    """A U-Net that is called without its modules where no gradients are asked for."""

    _lean: Network | None = None

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the U-Net's."""
        if torch.is_grad_enabled():
            return super().forward(u, log_snr, label)
        if self._lean is None:
            self._lean = lean(self, UNet)
        return cast(Network, self._lean)(u, log_snr, label)

    # What is lean is of the parts as they were, and is not copied.

    def _apply(self, *how: Any, **options: Any) -> Any:
        self._lean = None
        return super()._apply(*how, **options)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *what: Any, **options: Any) -> None:
        self._lean = None
        super()._load_from_state_dict(*what, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lean": None}


class UncheckedGroupNorm(nn.GroupNorm):
    """GroupNorm without a look at the shape, of which a U-Net's norms have several values."""

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


class Compiled(nn.Module):
    """Runs a compiled network, on one core: torch would compile anew for more.

    With gradients, and with several cores for many values, the network runs as it is.
    """

    def __init__(self, network: nn.Module, call: Network) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the network's."""
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(u, log_snr, label))
        # One core is behind several where there is much to compute.
        if torch.get_num_threads() != 1 and u.device.type == "cpu" and u.numel() > PIECE:
            return cast(Tensor, self.network(u, log_snr, label))
        # Strides are among what it was compiled for, also where they say nothing, as of one row.
        asked = (x.clone(memory_format=torch.contiguous_format) for x in (u, log_snr, label))
        with exactly(1):
            return self.call(*asked)


class FixedSizes(nn.Module):
    """Calls a network at a few batch sizes only.

    A batch is split into the largest size; what is left is padded, by its first row, to the
    smallest size that holds it.
    """

    def __init__(self, network: Network, sizes: Sequence[int]) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes must be positive and at least one, got {tuple(sizes)}")
        self.network = network
        self.sizes = tuple(sorted(set(sizes)))

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the network's."""
        pieces = zip(
            *(torch.split(part, self.sizes[-1]) for part in (u, log_snr, label)), strict=True
        )
        return torch.cat([self._padded(piece) for piece in pieces])

    def _padded(self, piece: tuple[Tensor, ...]) -> Tensor:
        rows = len(piece[0])
        size = next(size for size in self.sizes if size >= rows)
        return self.network(*(_pad(part, size) for part in piece))[:rows]


def rounded(rows: int) -> int:
    """The next of the batch sizes that a CPU computes, eight an octave from eight on.

    oneDNN makes kernels for every size, in 4 ms and 3.5 MB for the digits network.
    """
    step: int = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


class SharedAmongCores(nn.Module):
    """Gives each core of a CPU some of a batch's rows, where no gradients are asked for.

    Threads that share every operation meet hundreds of times a call, and each time all wait for the
    one whose core had something else to do. With rows of their own they meet once. A core's rows
    are padded, by its first, to a `rounded` number. A row's answer may differ in its last bits from
    that of the network itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._least = 0 if isinstance(network, Compiled) else EAGER

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the network's."""
        cores = torch.get_num_threads()
        pieces = min(cores, len(u), u.numel() // PIECE) if u.numel() >= self._least else 1
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(u, log_snr, label))
        if pieces < 2:
            return self._piece((u, log_snr, label))
        parts = list(zip(*(part.tensor_split(pieces) for part in (u, log_snr, label)), strict=True))
        return torch.cat(side_by_side(self._piece, parts, threads=cores // pieces))

    def _piece(self, part: tuple[Tensor, ...]) -> Tensor:
        rows = len(part[0])
        with torch.no_grad():  # of each thread
            out: Tensor = self.network(*(_pad(values, rounded(rows)) for values in part))
        return out[:rows]


def _pad(part: Tensor, size: int) -> Tensor:
    if len(part) == size:
        return part
    return torch.cat((part, part[:1].expand(size - len(part), *part.shape[1:])))


def _compiled_for_cores(network: UNet, shape: Shape, device: torch.device) -> Compiled:
    """For any rows of one core; `SharedAmongCores` uses several."""
    from torch._dynamo import config as tracing
    from torch._inductor import config as generating

    calls = [_compile(network) for _ in RANGES]
    # Frozen weights are constants, which oneDNN packs once (as an option of `torch.compile` it
    # comes too late); while code runs that is C++ throughout, other threads have the interpreter.
    # What other networks' shapes were does not matter here.
    with (
        generating.patch(freezing=True, cpp_wrapper=True),
        tracing.patch(automatic_dynamic_shapes=False),
        torch.no_grad(),
        exactly(1),
    ):
        for rows, call in zip(RANGES, calls, strict=True):
            asked = _blank(rows, shape, device)
            if rows > 1:
                for part in asked:
                    torch._dynamo.mark_dynamic(part, 0)
            call(*asked)
    _forget_modules()

    def call_for(u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return calls[bisect_right(RANGES, len(u)) - 1](u, log_snr, label)

    return Compiled(network, call_for)


def _compiled_for_gpu(network: UNet, shape: Shape, device: torch.device) -> Compiled:
    # Without CUDA graphs: torch keeps theirs to the thread that compiled, and here one thread
    # loads a network and another runs it.
    call = _compile(network, dynamic=False)
    sizes: list[int] = []
    with torch.no_grad(), exactly(1):
        for rows in SIZES:
            try:
                call(*_blank(rows, shape, device))
            except torch.OutOfMemoryError:
                if not sizes:
                    raise
                break
            sizes.append(rows)
    return Compiled(network, FixedSizes(call, sizes))


def _compile(network: UNet, dynamic: bool | None = None) -> Network:
    """In code and among names of its own, for torch keeps with these what it compiled.

    It keeps a few versions at most, in a list that several threads must not go through at once,
    and for ever unless told.
    """
    from torch._C._dynamo.eval_frame import reset_code

    def call(u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return cast(Tensor, network(u, log_snr, label))

    own = FunctionType(call.__code__.replace(), dict(call.__globals__), closure=call.__closure__)
    weakref.finalize(own, reset_code, own.__code__)
    compiled: Network = torch.compile(own, dynamic=dynamic)
    return compiled


def _forget_modules() -> None:
    """Modules of compiled code go with their networks: torch keeps them, with frozen weights."""
    from torch._inductor.codecache import PyCodeCache

    for module in PyCodeCache.modules:
        sys.modules.pop(module.__name__, None)
    PyCodeCache.cache_clear()


def _blank(rows: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Something to ask a network."""
    return (
        torch.zeros(rows, *shape, device=device),
        torch.zeros(rows, device=device),
        torch.zeros(rows, dtype=torch.int64, device=device),
    )


class PackedConv2d(nn.Conv2d):
    """A convolution on a processor, whose weights are packed for oneDNN once, in the first call.

    torch packs them in every call, which is a tenth of the time of eight digits' with AVX-512. It
    does so still where gradients are asked for; a compiler packs for itself.
    """

    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (rows, channels, H, W)."""
        if not self._packs(x):
            return nn.Conv2d.forward(self, x)
        how = (self.padding, self.stride, self.dilation, self.groups)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *how, "none", [], ""
        )
        return out

    @staticmethod
    def _packs(x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        few = len(x) == 1 and x.numel() <= FEW and x.dtype == torch.float32
        return not few and can_pack(x.dtype)

    # Packed weights are of the weights as they were, and cannot be copied.

    def _apply(self, *how: Any, **options: Any) -> Any:
        self.packed = None
        return super()._apply(*how, **options)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *what: Any, **options: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*what, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}


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

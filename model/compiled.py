"""U-Nets compiled by `torch.compile`: on a CPU for any number of rows, on a GPU for a few.

What torch keeps of compiled code goes when its network goes, and several threads may call it.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from types import FunctionType
from typing import cast

import torch
from torch import Tensor, nn

from model.cores import PIECE, exactly, pad
from model.denoiser import Network
from model.lean import lean
from model.unet import UNet

SIZES = (1, 4, 16, 64)
"""Batch sizes that are compiled on a GPU; a batch between two is padded to the larger."""

RANGES = (1, 2, 16)
"""Rows from which on a network is compiled anew on a CPU: one row is a case of its own, and from 16
on torch takes another kernel for the convolutions of one pixel."""

Shape = tuple[int, ...]


def can_compile() -> bool:
    """Whether there is a C++ compiler for `torch.compile` to call."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


class Compiled(nn.Module):
    """Runs a compiled network, on one core: torch would compile anew for more.

    With gradients, and with several cores for many values, the network runs as it is.
    """

    def __init__(self, network: nn.Module, call: Network) -> None:
        super().__init__()
        self.network = network
        self.call = call
        self._lean: Network = lean(network)

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """As the network's."""
        if torch.is_grad_enabled():
            return cast(Tensor, self.network(u, log_snr, label))
        # One core is behind several where there is much to compute.
        if torch.get_num_threads() != 1 and u.device.type == "cpu" and u.numel() > PIECE:
            return self._lean(u, log_snr, label)
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
        return self.network(*(pad(part, size) for part in piece))[:rows]


def compiled_for_cores(network: UNet, shape: Shape, device: torch.device) -> Compiled:
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


def compiled_for_gpu(network: UNet, shape: Shape, device: torch.device) -> Compiled:
    """For `SIZES`, as far as there is memory for them."""
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

"""A network call's rows side by side on the cores of a CPU, each core's in a thread of its own.

How many cores a call may keep busy is what torch says of the thread that makes it
(`torch.get_num_threads`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

PIECE = 1 << 10
"""Values of a batch from which a core of its own is worth while."""

EAGER = 1 << 12
"""Values from which a batch is shared at all where nothing is compiled: below, threads that wait
for the interpreter between operations lose more than those that share each operation."""

_START = 60.0
"""Seconds that a thread may take to start."""

Part = TypeVar("Part")
Found = TypeVar("Found")


def use_cores(cores: int) -> None:
    """How many cores this thread's tensor operations may use; before its first one."""
    # A thread takes over what any thread set last when it first asks, so it asks before it sets.
    torch.get_num_threads()
    torch.set_num_threads(cores)


def _threads() -> ThreadPoolExecutor:
    # So many that whoever else computes, a loader that measures its model, need not queue.
    most = 2 * (os.cpu_count() or 1)
    return ThreadPoolExecutor(most, "network", initializer=use_cores, initargs=(1,))


def _renew() -> None:
    """A process that was forked has none of the threads."""
    global _pool
    _pool = _threads()


_pool = _threads()
os.register_at_fork(after_in_child=_renew)


def start_threads(cores: int) -> None:
    """Start a thread for each of so many cores, before the process has threads of other kinds.

    Where there may be few heaps, glibc gives one of its own to each of the first threads, and to
    later ones what others use already. Threads that compute with the same heap keep waiting for
    each other: a call of 64 digits then takes 7 % longer.
    """
    count = min(cores, os.cpu_count() or 1)
    together = Barrier(count, timeout=_START)
    for started in [_pool.submit(together.wait) for _ in range(count)]:
        started.result()


def side_by_side(
    function: Callable[[Part], Found], parts: Sequence[Part], threads: int = 1
) -> list[Found]:
    """The function of each part, as many at a time as there are cores, in the order of the parts.

    threads: that each part uses for its own tensor operations. Where one part fails, its error is
    raised when the others are done: nothing goes on in the background. A part must not do this
    itself, since all threads might then wait for more. A thread that touches tensors for the first
    time afterwards has one core, as these have, unless it says otherwise (`use_cores`).
    """
    lanes = min(torch.get_num_threads(), len(parts))

    def run(lane: int) -> list[Found]:
        with exactly(threads):
            return [function(part) for part in parts[lane::lanes]]

    if lanes < 2:
        return run(0) if parts else []
    running = [_pool.submit(run, lane) for lane in range(lanes)]
    wait(running)
    found = [lane.result() for lane in running]
    return [found[place % lanes][place // lanes] for place in range(len(parts))]


@contextmanager
def exactly(threads: int) -> Iterator[None]:
    """This thread's tensor operations use so many threads meanwhile."""
    before = torch.get_num_threads()
    if before == threads:  # setting it makes oneDNN forget what it has prepared
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SharedAmongCores(nn.Module):
    """Gives each core of a CPU some of a batch's rows, where no gradients are asked for.

    Threads that share every operation meet hundreds of times a call, and each time all wait for the
    one whose core had something else to do. With rows of their own they meet once. A core's rows
    are padded, by its first, to a `rounded` number. A row's answer may differ in its last bits from
    that of the network itself.
    """

    def __init__(self, network: nn.Module, least: int = EAGER) -> None:
        """least: values from which a batch is shared; of compiled code, `PIECE`."""
        super().__init__()
        self.network = network
        self._least = least

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
            out: Tensor = self.network(*(pad(values, rounded(rows)) for values in part))
        return out[:rows]


def rounded(rows: int) -> int:
    """The next of the batch sizes that a CPU computes, eight an octave from eight on.

    oneDNN makes kernels for every size, in 4 ms and 3.5 MB for the digits network.
    """
    step: int = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def pad(part: Tensor, size: int) -> Tensor:
    """Its rows, then the first of them again, so many in all."""
    if len(part) == size:
        return part
    return torch.cat((part, part[:1].expand(size - len(part), *part.shape[1:])))

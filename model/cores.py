"""Parts of a network call side by side on the cores of a CPU, each in a thread of its own.

How many cores a call may keep busy is what torch says of the thread that makes it
(`torch.get_num_threads`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Found = TypeVar("Found")

_pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="network")


def _renew() -> None:
    """A process that was forked has none of the threads."""
    global _pool
    _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="network")


os.register_at_fork(after_in_child=_renew)


def side_by_side(
    function: Callable[[Part], Found], parts: Sequence[Part], threads: int = 1
) -> list[Found]:
    """The function of each part, as many at a time as there are cores, in the order of the parts.

    threads: that each part uses for its own tensor operations. Where one part fails, its error is
    raised when the others are done: nothing goes on in the background.
    """
    lanes = min(torch.get_num_threads(), len(parts))

    def run(lane: int) -> list[Found]:
        with exactly(threads):
            return [function(part) for part in parts[lane::lanes]]

    # The caller's thread takes one, since it would do nothing else.
    others = [_pool.submit(run, lane) for lane in range(1, lanes)]
    try:
        found = [run(0)] if parts else []
    finally:
        wait(others)
    found += [other.result() for other in others]
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

"""The cores of a CPU that a network call may keep busy, and a thread for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Found = TypeVar("Found")


class Cores:
    """As many cores as a call may keep busy. Who makes the calls may change it between two of them.

    count: how many now; most: how many it will ever be.
    """

    def __init__(self, count: int = 1, most: int | None = None) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(most or count, thread_name_prefix="network")

    def map(
        self, function: Callable[[Part], Found], parts: Sequence[Part], threads: int = 1
    ) -> list[Found]:
        """The function of each part, on `count` of them at a time, in the order of the parts.

        threads: that each uses for its own tensor operations. Where one part fails, its error is
        raised when the others are done: nothing goes on in the background.
        """
        lanes = min(self.count, len(parts))

        def run(lane: int) -> list[Found]:
            with exactly(threads):
                return [function(part) for part in parts[lane::lanes]]

        if lanes < 2:
            return run(0) if parts else []
        # The caller's thread takes one, since it would do nothing else.
        others = [self._threads.submit(run, lane) for lane in range(1, lanes)]
        try:
            found = [run(0)]
        finally:
            wait(others)
        found += [other.result() for other in others]
        return [found[place % lanes][place // lanes] for place in range(len(parts))]


@contextmanager
def exactly(threads: int) -> Iterator[None]:
    """This thread's tensor operations use so many threads meanwhile."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

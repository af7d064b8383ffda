"""How a process's threads share the cores and the interpreter.

Of the cores the engine's thread has its process's part for tensor operations, every other one.
OpenMP keeps a team of threads for every thread that ever ran an operation in parallel. Once there
are more of them than cores, waiting threads of all teams stop spinning and sleep, and a network
call takes two to three times as long (docs/decisions.md). So whoever touches tensors in a thread of
its own says first which it is.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from model.cores import use_cores

CORES = torch.get_num_threads()
"""What OMP_NUM_THREADS says, else the machine's cores: read before anyone changed it."""


_SWITCH = 1e-4
"""Seconds that another thread may keep the interpreter while the engine waits for it.

Between any two of its hundreds of tensor operations a tick; Python's own 5 ms cost a third of it.
"""


class SharedCores:
    """The machine's cores, shared by the processes of a worker that have something to compute.

    Alone, a process has all of them; when all `processes` are busy, each has its `share` or one
    more.
    """

    def __init__(
        self, busy: ctypes.Array[ctypes.c_ubyte] | bytearray | None = None, place: int = 0
    ) -> None:
        """busy: a number for every process, in memory that all see; place: which is this one's."""
        self._busy = bytearray(1) if busy is None else busy
        self._place = place
        self.processes = len(self._busy)
        self.share = max(1, CORES // self.processes)

    def begin(self) -> None:
        """Before a tick of the engine's thread: this process is busy, and has what others leave."""
        self._busy[self._place] = 1
        each, rest = divmod(CORES, sum(self._busy))
        use_cores(max(1, each + (sum(self._busy[: self._place]) < rest)))

    def end(self) -> None:
        """There is nothing to compute; others may have the cores."""
        self._busy[self._place] = 0

    @property
    def another_idles(self) -> bool:
        """Whether another process has nothing to compute."""
        return sum(self._busy) - self._busy[self._place] < self.processes - 1

    @property
    def shares(self) -> float:
        """How many times its share this thread may use."""
        return torch.get_num_threads() / self.share


def use_one_core() -> None:
    """For a thread that makes no network calls, before its first tensor operation."""
    use_cores(1)


def share_interpreter() -> None:
    """For a process with an engine: no thread keeps the interpreter from it for long."""
    sys.setswitchinterval(_SWITCH)

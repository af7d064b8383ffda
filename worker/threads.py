"""What cores a thread may use: the engine's tensor operations all of them, others' one.

OpenMP keeps a team of threads for every thread that ever ran an operation in parallel. Once there
are more of them than cores, waiting threads of all teams stop spinning and sleep, and a network
call of the engine takes two to three times as long (docs/decisions.md). So whoever touches tensors
in a thread of their own says first which it is.

Where OpenMP binds its threads to cores, it binds the process's first thread, too, and what that
thread starts inherits its core. Threads that are not the engine's are freed again.
"""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

_free: Collection[int] = ()
"""Cores that threads without tensor operations may run on; none: nothing binds them."""

_CORES = torch.get_num_threads()
"""What OMP_NUM_THREADS says, else the machine's cores: read before anyone changed it."""


def use_all_cores() -> None:
    """For the engine's thread, and for one that ends soon."""
    _use(_CORES)


def use_one_core() -> None:
    """For every other thread, before its first tensor operation."""
    _use(1)
    if _free:
        os.sched_setaffinity(0, _free)  # of the thread that calls


def free_others_on(cores: Collection[int]) -> None:
    """Say what cores this process had before OpenMP bound its threads."""
    global _free
    _free = cores


def _use(cores: int) -> None:
    # A thread takes over what any thread set last when it first asks, so it asks before it sets.
    torch.get_num_threads()
    torch.set_num_threads(cores)

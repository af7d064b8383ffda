"""How many cores a thread's tensor operations may use: the engine all of them, others one.

OpenMP keeps a team of threads for every thread that ever ran an operation in parallel. Once there
are more of them than cores, waiting threads of all teams stop spinning and sleep, and a network
call of the engine takes two to three times as long (docs/decisions.md). So whoever touches tensors
in a thread of their own says first which it is.
"""

from __future__ import annotations

import torch

CORES = torch.get_num_threads()
"""What OMP_NUM_THREADS says, else the machine's cores: read before anyone changed it."""


def use_all_cores() -> None:
    """For the engine's thread, and for one that ends soon."""
    _use(CORES)


def use_one_core() -> None:
    """For every other thread, before its first tensor operation."""
    _use(1)


def _use(cores: int) -> None:
    # A thread takes over what any thread set last when it first asks, so it asks before it sets.
    torch.get_num_threads()
    torch.set_num_threads(cores)

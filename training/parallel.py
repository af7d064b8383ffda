"""One process, or several under ``torchrun``: who this one is, and what they tell each other.

    torchrun --nproc-per-node 2 -m service train CONFIG --out RUN

Each has a GPU of its own (NCCL), or its share of the cores (gloo).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from training.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place; queued behind the device's work."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """All processes' values ``(rows,)`` in the order of their ranks."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def world(device: str = "cpu") -> Iterator[World]:
    """The run's processes, for as long as it lasts; device: "auto", "cpu" or "cuda".

    Raises `ConfigError` where "cuda" is asked for and there is none.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(rank=0, size=1, device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=place)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device = {name!r} needs a CUDA device for process {local_rank}, and torch sees "
            f"{torch.cuda.device_count()}; set train.device to 'cpu', or start fewer processes"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device

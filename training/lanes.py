"""The rows of a batch, shared among the cores of a CPU.

Threads that share every operation meet hundreds of times a step, and each time all wait for the
last. With rows of their own, forward and backward, they meet once, where gradients are added up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from training.dropout import Dropout

LEAST = 4  # rows of a lane: with fewer, threads share the operations

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Some rows of a process's part of the batch: ``count`` from ``first``, counted within it.

    network: its weights are everybody's, its gradients the lane's own. Its dropout is the lane's.
    """

    first: int
    count: int
    network: nn.Module
    dropout: Dropout


class Lanes:
    """As many lanes as the CPU has threads for, and one on any other device."""

    def __init__(
        self,
        network: nn.Module,
        rows: int,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        alone: bool,
        channels_last: bool,
    ) -> None:
        """rows: of one part of the batch; shape: (C, H, W). alone: one lane, on the CPU, too.

        The first lane's network is the one given.
        """
        threads = torch.get_num_threads()
        many = device.type == "cpu" and not alone
        count = max(1, min(threads, rows // LEAST)) if many else 1
        self._threads = threads // count  # of one lane
        networks = [network, *(_twin(network) for _ in range(count - 1))]
        places = torch.arange(rows).tensor_split(count)
        self.all = [
            Lane(
                first=int(own[0]),
                count=len(own),
                network=lane,
                dropout=Dropout(lane, len(own), shape, device, channels_last=channels_last),
            )
            for lane, own in zip(networks, places, strict=True)
        ]
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane") if count > 1 else None

    def run(self, work: Callable[[Lane], T]) -> list[T]:
        """work's result for every lane, in their order; each lane has a thread of its own."""
        if self._pool is None:
            return [work(lane) for lane in self.all]
        calls = [self._pool.submit(self._one, work, lane) for lane in self.all]
        wait(calls)  # also where one fails: nothing goes on in the background
        return [call.result() for call in calls]

    def forget_gradients(self) -> None:
        """Let every lane begin from none."""
        for lane in self.all:
            lane.network.zero_grad()

    def add_gradients(self) -> None:
        """Add the other lanes' gradients to the first one's, always in the same order."""
        first = [weight.grad for weight in self.all[0].network.parameters()]
        for lane in self.all[1:]:
            own = [weight.grad for weight in lane.network.parameters()]
            pairs = [
                (a, b) for a, b in zip(first, own, strict=True) if a is not None and b is not None
            ]
            torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])

    def _one(self, work: Callable[[Lane], T], lane: Lane) -> T:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # of this thread alone
        return work(lane)


def _twin(network: nn.Module) -> nn.Module:
    """A network with the same weights in the same memory, and gradients of its own."""
    memo: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach()) for weight in network.parameters()
    }
    memo |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, memo)

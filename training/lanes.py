"""The rows of a batch, shared among the cores of a CPU.

Threads that share every operation meet hundreds of times a step, and each time all wait for the
last. With rows of their own, forward and backward, they meet once, or once in each part of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.dropout import Dropout

LEAST = 4  # rows of a lane: with fewer, threads share the operations
MOST = 16  # lanes, each of which keeps gradients of its own

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
    """A lane for each thread of a CPU, or a single one.

    It is one where a lane would have fewer than `LEAST` rows, or threads are more than `MOST`, and
    on any other device. Several lanes of several threads each would be more than there are cores.
    """

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
        count = threads if many and threads <= min(MOST, rows // LEAST) else 1
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
        """work's result for every lane, in their order, by a thread each."""
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
        first = _gradients(self.all[0].network)
        for lane in self.all[1:]:
            torch._foreach_add_(first, _gradients(lane.network))
            lane.network.zero_grad()

    def _one(self, work: Callable[[Lane], T], lane: Lane) -> T:
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        return work(lane)


def _gradients(network: nn.Module) -> list[Tensor]:
    """Of all weights; a `RuntimeError` names those that have none."""
    missing = [name for name, weight in network.named_parameters() if weight.grad is None]
    if missing:
        raise RuntimeError(f"no gradient has come to {', '.join(missing)}")
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


def _twin(network: nn.Module) -> nn.Module:
    """A network with the same weights in the same memory, and gradients of its own."""
    memo: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach()) for weight in network.parameters()
    }
    memo |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, memo)

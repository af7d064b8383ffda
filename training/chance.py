"""Every random number of a training run, as a function of (seed, step, place in the batch).

A place counts through the whole batch of a step, whatever processes and parts it is spread over.
So a run that was stopped goes on with the same numbers, two processes see those that one would,
and what a step was trained on can be said afterwards. `model.noise` makes them; see there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import Stream, derived_seeds, normal, uniform


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The places first … first + count − 1 of a step's batch (steps count from 0)."""

    seed: int
    step: int
    first: int
    count: int
    device: torch.device

    def keys(self, device: torch.device) -> Tensor:
        """One a place, int64 ``(count,)``: the place above, the run's seed below."""
        places = torch.arange(self.first, self.first + self.count, device=device)
        return (places << 32) | self.seed

    def normal(self, stream: Stream, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32 ``(count, *shape)``."""
        return normal(self.keys(self.device), stream, self.step, shape).float()

    def uniform(self, stream: Stream, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in (0, 1), float64 ``(count, *shape)``."""
        return uniform(self.keys(self.device), stream, self.step, shape)

    def seeds(self, stream: Stream) -> list[int]:
        """Seeds for torch's own generators, one a place."""
        # Where they are read: a GPU's would have to be waited for.
        return derived_seeds(self.keys(torch.device("cpu")), stream, self.step)


def shift(seed: int, step: int) -> float:
    """One uniform number a step, shared by the whole batch."""
    return float(uniform(torch.tensor([seed]), Stream.TIME, step, ()))


class Order:
    """Which image comes at which place: every one once before any comes again."""

    def __init__(self, seed: int, images: int, batch_size: int) -> None:
        self._seed, self._images, self._batch_size = seed, images, batch_size
        self._epochs: dict[int, Tensor] = {}

    def rows(self, step: int, first: int, count: int) -> Tensor:
        """Images at these places of a step's batch, int64 ``(count,)``."""
        start = step * self._batch_size + first
        places = torch.arange(start, start + count)
        epochs = places // self._images
        parts = [
            self._epoch(epoch)[places[epochs == epoch] % self._images]
            for epoch in sorted(set(epochs.tolist()))
        ]
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # A batch spans two epochs at most, unless it is larger than the data.
            for old in [known for known in self._epochs if known < epoch - 1]:
                del self._epochs[old]
            (seed,) = derived_seeds(torch.tensor([self._seed]), Stream.ORDER, epoch)
            generator = torch.Generator().manual_seed(seed)
            self._epochs[epoch] = torch.randperm(self._images, generator=generator)
        return self._epochs[epoch]

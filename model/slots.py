"""Places in tensors that grow: what a store keeps for its rows."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


class Slots:
    """Named tensors ``(capacity, …)`` that share their first dimension, and who has which place.

    Rows that come and go do not move the others; capacity doubles when it is used up. A place is
    zero when it is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tensors: dict[str, Tensor] = {}
        self._free: list[int] = []
        self._capacity = 0

    def add(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """A tensor more, ``shape`` a place."""
        self._tensors[name] = torch.zeros(self._capacity, *shape, dtype=dtype, device=self.device)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def take(self, count: int) -> Tensor:
        """Free places, the lowest first: int64 ``(count,)`` on the device."""
        while len(self._free) < count:
            self._grow()
        places = [heapq.heappop(self._free) for _ in range(count)]
        index = torch.tensor(places, device=self.device)
        for tensor in self._tensors.values():
            tensor[index] = 0
        return index

    def give_back(self, places: Tensor) -> None:
        """These places are free again."""
        for place in places.tolist():
            heapq.heappush(self._free, place)

    def _grow(self) -> None:
        more = max(16, self._capacity)
        for name, tensor in self._tensors.items():
            room = torch.zeros(more, *tensor.shape[1:], dtype=tensor.dtype, device=self.device)
            self._tensors[name] = torch.cat((tensor, room))
        self._free += range(self._capacity, self._capacity + more)  # higher than all: still a heap
        self._capacity += more

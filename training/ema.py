"""Exponential moving averages of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ema:
    """Follows a network's weights at several decays; early on it averages over what there is.

    After n updates a decay is min(decay, (1 + n)/(10 + n)), so that the random start is forgotten
    quickly.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float]) -> None:
        self.updates = 0
        live = network.state_dict()
        self._live = list(live.values())  # shares the network's memory
        self.weights: dict[float, dict[str, Tensor]] = {
            decay: {name: tensor.detach().clone() for name, tensor in live.items()}
            for decay in decays
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the network's weights."""
        early = (1 + self.updates) / (10 + self.updates)
        self.updates += 1
        for decay, weights in self.weights.items():
            torch._foreach_lerp_(list(weights.values()), self._live, 1.0 - min(decay, early))

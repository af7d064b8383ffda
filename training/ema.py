"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Follows a network's weights; early on it averages over what there is.

    After n updates the decay is min(decay, (1 + n)/(10 + n)), so that the random start is
    forgotten quickly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step towards the network's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, tensor in network.state_dict().items():
            self.weights[name].lerp_(tensor, 1.0 - decay)

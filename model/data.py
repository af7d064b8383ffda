"""The one map between data levels and the model's space.

Data has levels v = 0 … L−1 (17 for digits, 256 for 8-bit images); the model's space is
[low, high]. A level is a cell of width (high − low)/L:

    x = low + (high − low)(v + u)/L

with u uniform in [0, 1) when dequantised (Theis et al. 2016) and ½ otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What one data point is: shape (C, H, W), number of levels, and the model's range."""

    shape: tuple[int, int, int]
    levels: int
    low: float = -1.0
    high: float = 1.0
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be three positive integers (C, H, W), got {self.shape}")
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low}, high={self.high}")

    @property
    def dimensions(self) -> int:
        """D = C·H·W."""
        return math.prod(self.shape)

    @property
    def classes(self) -> int:
        """Number of classes, 0 for a model without."""
        return len(self.class_names or ())

    def to_model(self, levels: Tensor, u: Tensor | float = 0.5) -> Tensor:
        """Levels 0 … L−1 (float64, any shape) to the model's space, at place u of their cell."""
        return self.low + (self.high - self.low) * (levels + u) / self.levels

    def to_levels(self, x: Tensor) -> Tensor:
        """The model's space to levels, not snapped, clipped to 0 … L−1."""
        levels = (x - self.low) / (self.high - self.low) * self.levels - 0.5
        return levels.clamp(0.0, self.levels - 1.0)

    def bits_per_dim(self, log_likelihood: Tensor) -> Tensor:
        """−log p/(D ln 2) + log2(L/(high − low)): bits per dimension of the discrete data."""
        per_dimension = -log_likelihood / (self.dimensions * math.log(2.0))
        return per_dimension + math.log2(self.levels / (self.high - self.low))

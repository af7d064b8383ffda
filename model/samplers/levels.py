"""The noise levels along a grid, as plain numbers for a sampler's formula."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from model.plan import EPS, Terms, X
from model.process import Process


class Level(NamedTuple):
    """x_t = alpha x_0 + sigma ε at time t."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """ρ = σ/α, the noise level of x/α."""
        return self.sigma / self.alpha

    @property
    def x0(self) -> Terms:
        """x̂0 = (x − σ ε)/α."""
        return {X: 1.0 / self.alpha, EPS: -self.ratio}


CLEAN = Level(0.0, 1.0, 0.0)
"""The image itself: where a sampler that ends in a denoising step goes after t_min."""


def levels(process: Process, times: Tensor) -> list[Level]:
    """The level at each time."""
    alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()
    return [Level(*level) for level in zip(times.tolist(), alpha, sigma, strict=True)]


def steps(process: Process, times: Tensor) -> Iterator[tuple[Level, Level]]:
    """Each (now, next) along the grid."""
    return pairwise(levels(process, times))


def steps_to_clean(process: Process, times: Tensor) -> Iterator[tuple[Level, Level]]:
    """Each (now, next) along the grid, then (last, CLEAN)."""
    return pairwise([*levels(process, times), CLEAN])


def scaled(terms: Terms, factor: float) -> Terms:
    """A linear combination times a number."""
    return {register: factor * coefficient for register, coefficient in terms.items()}

"""Distances between two sets of images, each given by its features ``(images, d)`` in float64.

    Fréchet   ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)         Heusel et al. 2017 (FID), eq. 6
    kernel    E k(x, x') + E k(y, y') − 2 E k(x, y)           Bińkowski et al. 2018 (KID), eq. 4
              with k(x, y) = (xᵀy/d + 1)³

The Fréchet distance of two finite sets is too large, by an amount that falls with their sizes: only
distances of equally many images compare. The kernel distance is an unbiased estimate of one that is
zero for equal distributions, so it may come out negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """mean ``(d,)``; root: A ``(d, k)`` with A Aᵀ the covariance, whose trace is ``variance``."""

    mean: Features
    root: Features
    variance: float

    @classmethod
    def of(cls, features: Features) -> Gaussian:
        """With a set's mean and unbiased covariance; `ValueError` for fewer than two images."""
        _require_sets(features)
        n, d = features.shape
        centred = features - features.mean(0)
        variance = float(np.square(centred).sum()) / (n - 1)
        root = centred.T / math.sqrt(n - 1)
        if n > d:
            values, vectors = np.linalg.eigh(root @ root.T)
            root = vectors * np.sqrt(values.clip(min=0.0))
        return cls(mean=features.mean(0), root=root, variance=variance)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The Fréchet distance of two Gaussians.

    tr (Σ₁ Σ₂)^½ is the sum of the singular values of A₁ᵀ A₂. A matrix root of Σ₁ Σ₂, as it is
    mostly computed, is not real where a covariance is singular.
    """
    shared = float(np.linalg.svd(first.root.T @ second.root, compute_uv=False).sum())
    apart = float(np.square(first.mean - second.mean).sum())
    return apart + first.variance + second.variance - 2.0 * shared


def kernel_distance(first: Features, second: Features) -> Estimate:
    """The squared maximum mean discrepancy of two sets, unbiased, with its jackknife error.

    The error leaves out one image at a time, of either set (Efron & Stein 1981): on the average it
    is not too small. No subsets are drawn, so the answer is not random.

    Raises `ValueError` for sets of fewer than three images, or of unequal d.
    """
    _require_sets(first, second)
    m, n = len(first), len(second)
    if min(m, n) < 3:
        raise ValueError(f"leaving one out needs 3 images a set, got {m} and {n}")
    # Sums of each image's kernel values with the others of its own set, and with the other set.
    own_x, own_y = _kernel_sums(first, first, itself=False), _kernel_sums(second, second, False)
    across_x, across_y = _kernel_sums(first, second), _kernel_sums(second, first)
    xx, yy, xy = own_x.sum(), own_y.sum(), across_x.sum()

    def distance(xx: Features, yy: Features, xy: Features, m: int, n: int) -> Features:
        return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2.0 * xy / (m * n)

    without_x = distance(xx - 2.0 * own_x, yy, xy - across_x, m - 1, n)
    without_y = distance(xx, yy - 2.0 * own_y, xy - across_y, m, n - 1)
    variance = (m - 1) * without_x.var() + (n - 1) * without_y.var()
    return Estimate(
        value=float(distance(xx, yy, xy, m, n)), standard_error=math.sqrt(float(variance))
    )


def _kernel_sums(of: Features, others: Features, itself: bool = True) -> Features:
    """Σ_j k(of[i], others[j]) for each i; without j = i where ``itself`` is false."""
    d = of.shape[1]
    sums = np.concatenate(
        [((of[i : i + _BLOCK] @ others.T / d + 1.0) ** 3).sum(1) for i in range(0, len(of), _BLOCK)]
    )
    return sums if itself else sums - (np.square(of).sum(1) / d + 1.0) ** 3


def _require_sets(*sets: Features) -> None:
    if any(one.ndim != 2 for one in sets) or len({one.shape[1] for one in sets}) != 1:
        shapes = " and ".join(str(one.shape) for one in sets)
        raise ValueError(f"sets of features (images, d) of one d are needed, got shapes {shapes}")
    if min(len(one) for one in sets) < 2:
        counts = " and ".join(str(len(one)) for one in sets)
        raise ValueError(f"at least 2 images a set are needed, got {counts}")

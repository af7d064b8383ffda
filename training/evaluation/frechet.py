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


def frechet_distance(first: Features, second: Features) -> float:
    """The Fréchet distance of two Gaussians with the sets' means and (unbiased) covariances.

    Raises `ValueError` for sets of fewer than two images, or of unequal d.
    """
    _require_alike(first, second)
    roots, traces = [], []
    for features in (first, second):
        covariance = np.atleast_2d(np.cov(features, rowvar=False))
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors * np.sqrt(values.clip(min=0.0)))  # A with A Aᵀ = Σ
        traces.append(float(np.trace(covariance)))
    # (Σ₁ Σ₂)^½ has the eigenvalues of (A₁ᵀ A₂)(A₁ᵀ A₂)ᵀ's root: the singular values of A₁ᵀ A₂.
    # Unlike a matrix root of Σ₁ Σ₂ these stay real where a covariance is singular.
    shared = float(np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum())
    apart = float(np.square(first.mean(0) - second.mean(0)).sum())
    return apart + sum(traces) - 2.0 * shared


def kernel_distance(first: Features, second: Features) -> Estimate:
    """The squared maximum mean discrepancy of two sets, unbiased, with its jackknife error.

    The error leaves out one image at a time, of either set (Efron & Stein 1981): on the average it
    is not too small. No subsets are drawn, so the answer is not random.

    Raises `ValueError` for sets of fewer than three images, or of unequal d.
    """
    _require_alike(first, second)
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


def _require_alike(first: Features, second: Features) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            "two sets of features (images, d) of one d are needed, "
            f"got shapes {first.shape} and {second.shape}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(f"at least 2 images a set are needed, got {len(first)} and {len(second)}")

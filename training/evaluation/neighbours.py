"""What nearest neighbours say of samples: precision and recall, and whether training was memorised.

Sets are given by their features ``(images, d)``, distances are Euclidean between them.

    precision   the share of samples within a real image's ball     Kynkäänniemi et al. 2019,
    recall      the share of real images within a sample's ball     eq. 1 and 2

where an image's ball reaches to its k-th nearest neighbour of its own set.

A model that has learnt its training images by heart draws samples nearer to them than unseen real
images are. How often a sample is nearer than a held-out image is the statistic of Mann and Whitney
(Meehan, Chaudhuri & Dasgupta 2020, §3): one half when both are alike, more for copies. It is also
more than one half for samples that are blurred, since the nearest image of an average is near.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.frechet import Features

K = 3
"""Neighbours that set the radius of a ball; the paper's."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """precision, recall: shares, 0 … 1.

    Both grow with the sets, so compare equally many. They come without an error: that of a share of
    so many images would be too small, since the balls are random as well.
    """

    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """Each image's nearest ones of another set: distances and int64 indices ``(images, k)``."""

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """How near samples come to training images, beside held-out images.

    samples_median, held_out_median: of the distances to the nearest training image.
    nearer: how often a sample is nearer than a held-out image, ties counted half.
    z: (nearer − ½) over its standard deviation for two equal distributions.
    copies: samples nearer to a training image than `copy_radius`, which is half of the smallest
    distance of a held-out image.
    """

    samples_median: float
    held_out_median: float
    nearer: float
    z: float
    copies: int
    copy_radius: float


def nearest(of: Features, among: Features, k: int) -> Nearest:
    """The k nearest of ``among`` for each of ``of``, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    if len(among) < k:
        raise ValueError(f"{k} neighbours are asked for among {len(among)} images")
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(among)
    indices: NDArray[np.int64] = found.kneighbors(of, return_distance=False)
    # Again by differences: ‖a‖² + ‖b‖² − 2aᵀb, by which they were found, loses those of copies.
    distances = np.stack(
        [np.linalg.norm(of - among[indices[:, j]], axis=1) for j in range(k)], axis=1
    )
    order = np.argsort(distances, axis=1, kind="stable")
    return Nearest(
        distances=np.take_along_axis(distances, order, axis=1),
        indices=np.take_along_axis(indices, order, axis=1),
    )


def nearest_of_many(of: Features, among: Iterable[Features], k: int) -> Nearest:
    """The k nearest of ``among``, which comes in chunks; indices count over all of them."""
    best: Nearest | None = None
    seen = 0
    for chunk in among:
        found = nearest(of, chunk, min(k, len(chunk)))
        found = Nearest(distances=found.distances, indices=found.indices + seen)
        best = found if best is None else _merged(best, found, k)
        seen += len(chunk)
    if best is None or seen < k:
        raise ValueError(f"{k} neighbours are asked for among {seen} images")
    return best


def precision_recall(real: Features, samples: Features, k: int = K) -> Coverage:
    """Both shares; raises `ValueError` for sets of k images or fewer."""
    return Coverage(
        precision=_share_within(samples, real, k), recall=_share_within(real, samples, k)
    )


def memorisation(
    samples_to_train: NDArray[np.float64], held_out_to_train: NDArray[np.float64]
) -> Memorisation:
    """Compare two sets of distances to the nearest training image, ``(images,)`` each."""
    m, n = len(samples_to_train), len(held_out_to_train)
    ordered = np.sort(held_out_to_train)
    below = np.searchsorted(ordered, samples_to_train, side="left")
    not_above = np.searchsorted(ordered, samples_to_train, side="right")
    nearer = float((n - 0.5 * (below + not_above)).sum() / (m * n))
    deviation = math.sqrt((m + n + 1) / (12.0 * m * n))
    radius = 0.5 * float(ordered[0])
    return Memorisation(
        samples_median=float(np.median(samples_to_train)),
        held_out_median=float(np.median(held_out_to_train)),
        nearer=nearer,
        z=(nearer - 0.5) / deviation,
        copies=int((samples_to_train < radius).sum()),
        copy_radius=radius,
    )


def _merged(first: Nearest, second: Nearest, k: int) -> Nearest:
    distances = np.concatenate((first.distances, second.distances), axis=1)
    indices = np.concatenate((first.indices, second.indices), axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Nearest(
        distances=np.take_along_axis(distances, order, axis=1),
        indices=np.take_along_axis(indices, order, axis=1),
    )


def _share_within(of: Features, centres: Features, k: int) -> float:
    """The share of images within the ball of at least one of the centres."""
    from sklearn.metrics import pairwise_distances_chunked

    if len(centres) <= k:
        raise ValueError(f"a ball to the {k}-th neighbour needs more images than {len(centres)}")
    radii = nearest(centres, centres, k + 1).distances[:, k]  # each is its own nearest
    within = [(chunk <= radii).any(1) for chunk in pairwise_distances_chunked(of, centres)]
    return float(np.concatenate(within).mean())

"""A checkpoint evaluated whole: figures with their errors, settings, and what they compare to."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.noise import image_seeds
from model.query import UNCONDITIONAL
from model.unet import UNetConfig
from training.data import Dataset, Split
from training.evaluation import features, sampling
from training.evaluation.bound import Bound, bound
from training.evaluation.features import Extractor
from training.evaluation.frechet import Features, Gaussian, frechet_distance, kernel_distance
from training.evaluation.likelihood import (
    Likelihoods,
    LikelihoodSettings,
    likelihoods,
)
from training.evaluation.neighbours import (
    K,
    Nearest,
    memorisation,
    nearest_of_many,
    precision_recall,
)

_CHUNK = 4096
"""Images whose features are in memory at once while neighbours are looked for."""

_LINEAR = 1024
"""Features that a linear classifier is fitted to at most: with more it takes minutes."""

_SHOWN = 8
"""Samples whose way from noise and whose neighbours are kept for a report."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and on how much.

    images: held-out images for likelihood and bound, all if None. samples: drawn by DDPM in
    ``sample_steps`` steps; 0 leaves out all that needs samples. reference: training images, and
    held-out ones, that sets of samples are compared with, at most; neighbours are looked for among
    all training images. features: see `training.evaluation.features`.
    """

    likelihood: LikelihoodSettings = field(default_factory=LikelihoodSettings)
    images: int | None = None
    bound_draws: int = 64
    samples: int = 1000
    sample_steps: int = 250
    reference: int = 10_000
    features: str = features.PIXELS
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """document: all figures, JSON values only. The rest is for a report.

    likelihoods: of each held-out image; given: its class, None without classes. bound: its curve.
    samples: x ``(rows, C, H, W)``, with their labels. Of a few of them, whose labels are
    ``shown_labels``: strip, how they emerge from noise, ``(shown, pictures, C, H, W)``; neighbours:
    levels of the training images nearest to them, ``(shown, k, C, H, W)``, with their distances.
    """

    document: dict[str, Any]
    likelihoods: Likelihoods
    given: Likelihoods | None
    bound: Bound
    samples: Tensor | None = None
    labels: Tensor | None = None
    strip: Tensor | None = None
    neighbours: Tensor | None = None
    neighbour_distances: Features | None = None
    shown_labels: list[int] = field(default_factory=list)


def evaluate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    settings: Settings,
    say: Callable[[str], None] = lambda words: None,
) -> Evaluation:
    """Measure all; ``say`` hears what comes next.

    Raises `FeaturesError`, and `ValueError` for data of another shape than the checkpoint's.
    """
    spec = checkpoint.description.data
    if (dataset.spec.shape, dataset.spec.levels) != (spec.shape, spec.levels):
        raise ValueError(
            f"the checkpoint is of images {spec.shape} with {spec.levels} levels, "
            f"the data {dataset.name} have {dataset.spec.shape} and {dataset.spec.levels}"
        )
    if settings.samples and min(settings.samples, len(dataset.held_out)) <= K:
        say(f"nothing about samples: more than {K} of them and of held-out images are needed")
        settings = dataclasses.replace(settings, samples=0)
    extract = features.extractor(settings.features, spec, settings.device)
    seconds: dict[str, float] = {}
    levels, labels = _some(dataset.held_out, settings.images)
    conditional = _conditional(checkpoint, dataset)

    with _timed(seconds, "bits_per_dim", say, f"bits/dim of {len(levels)} held-out images"):
        plain = likelihoods(checkpoint, levels, labels, settings.likelihood, settings.device)
    given = None
    if conditional:
        with _timed(seconds, "bits_per_dim_given_class", say, "the same, given their classes"):
            asked = dataclasses.replace(settings.likelihood, conditional=True)
            given = likelihoods(checkpoint, levels, labels, asked, settings.device)
    with _timed(seconds, "elbo", say, "the evidence lower bound, term by term"):
        lower = bound(
            checkpoint,
            levels,
            draws=settings.bound_draws,
            seed=settings.seed,
            device=settings.device,
        )
    document: dict[str, Any] = {
        "digest": checkpoint.digest,
        "data": _about(dataset, checkpoint),
        "settings": dataclasses.asdict(settings),
        "bits_per_dim": _bits(plain),
        "bits_per_dim_given_class": None if given is None else _bits(given),
        "elbo": dataclasses.asdict(lower),
    }
    found = Evaluation(
        document=document,
        likelihoods=plain,
        given=given,
        bound=lower,
    )
    if settings.samples:
        found = _with_samples(checkpoint, dataset, settings, extract, found, seconds, say)
    document["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    return dataclasses.replace(found, document=_numbers(document))


def _with_samples(
    checkpoint: Checkpoint,
    dataset: Dataset,
    settings: Settings,
    extract: Extractor,
    found: Evaluation,
    seconds: dict[str, float],
    say: Callable[[str], None],
) -> Evaluation:
    """All that needs samples; fills the document of what was found before."""
    spec, count = checkpoint.description.data, settings.samples
    conditional = _conditional(checkpoint, dataset)
    labels = torch.full((count,), UNCONDITIONAL)
    if conditional:
        labels = sampling.labels_like(dataset.train.labels, count, settings.seed)
    seeds, steps = torch.tensor(image_seeds(settings.seed, count)), settings.sample_steps
    with _timed(seconds, "samples", say, f"{count} samples of {steps} steps"):
        x = sampling.draw(checkpoint, labels, seeds, steps=steps, device=settings.device)
    shown = _spread(labels, min(_SHOWN, count))
    with _timed(seconds, "strip", say, "how some of them emerge from noise"):
        strip = sampling.denoising(
            checkpoint, labels[shown], seeds[shown], steps=steps, device=settings.device
        )
    with _timed(seconds, "features", say, f"features of samples and images: {extract.name}"):
        of_samples = extract(spec.to_levels(x).round())
        train, train_labels = _some(dataset.train, settings.reference)
        held_out, held_out_labels = _some(dataset.held_out, settings.reference)
        of_train, of_held_out = extract(train), extract(held_out)
    with _timed(seconds, "distances", say, "distances between the sets"):
        document = {
            "count": count,
            "sampler": "ddpm",
            "steps": steps,
            "features": extract.name,
            "dimensions": of_train.shape[1],
            "train_images": len(of_train),
            "held_out_images": len(of_held_out),
            **_distances(of_samples, of_train, of_held_out),
        }
    with _timed(seconds, "neighbours", say, "nearest training images"):
        near, far = (
            nearest_of_many(of, _chunks(extract, dataset.train), k=k)
            for of, k in ((of_samples, 3), (of_held_out, 1))
        )
        document["memorisation"] = dataclasses.asdict(
            memorisation(near.distances[:, 0], far.distances[:, 0])
        )
    if conditional and of_train.shape[1] <= _LINEAR:
        with _timed(seconds, "classes", say, "whether samples show their class"):
            score = sampling.linear_classifier(of_train, train_labels)
            document["class_accuracy"] = score(of_samples, labels)
            document["class_accuracy_held_out"] = score(of_held_out, held_out_labels)
    found.document["samples"] = document
    return dataclasses.replace(
        found,
        samples=x,
        labels=labels,
        strip=strip,
        neighbours=_images(dataset.train, near, shown),
        neighbour_distances=near.distances[shown.numpy()],
        shown_labels=labels[shown].tolist(),
    )


def _distances(samples: Features, train: Features, held_out: Features) -> dict[str, Any]:
    """Of samples to training images, and of held-out images to them: what could be hoped for."""
    same = min(len(samples), len(held_out))
    # Spread over each set, since both may stand in the order of their classes.
    some, real = (
        of[np.linspace(0, len(of) - 1, same).round().astype(int)] for of in (samples, held_out)
    )
    known = Gaussian.of(train)
    return {
        "frechet": {
            "samples": frechet_distance(Gaussian.of(samples), known),
            "of_equally_many": {
                "images": same,
                "samples": frechet_distance(Gaussian.of(some), known),
                "held_out": frechet_distance(Gaussian.of(real), known),
            },
        },
        "kid": {
            "samples": dataclasses.asdict(kernel_distance(samples, train)),
            "held_out": dataclasses.asdict(kernel_distance(held_out, train)),
        },
        "precision_recall": {
            "images": same,
            "samples": dataclasses.asdict(precision_recall(train, some)),
            "held_out": dataclasses.asdict(precision_recall(train, real)),
        },
    }


def _some(split: Split, most: int | None) -> tuple[Tensor, Tensor]:
    """Levels and labels of at most so many images, evenly spread over the split."""
    count = len(split) if most is None else min(most, len(split))
    rows = ((torch.arange(count, dtype=torch.float64) + 0.5) * len(split) / count).long()
    return split.take(rows), split.labels[rows]


def _chunks(extract: Extractor, split: Split) -> Iterator[Features]:
    for first in range(0, len(split), _CHUNK):
        yield extract(split.take(torch.arange(first, min(first + _CHUNK, len(split)))))


def _images(split: Split, near: Nearest, rows: Tensor) -> Tensor:
    indices = torch.from_numpy(near.indices[rows.numpy()])
    return split.take(indices.flatten()).reshape(*indices.shape, *split.take(indices[0]).shape[1:])


def _spread(labels: Tensor, count: int) -> Tensor:
    """Rows evenly spread, so that classes are."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * len(labels) / count).long()


def _conditional(checkpoint: Checkpoint, dataset: Dataset) -> bool:
    """Whether the network can be asked for classes, and the data have the same ones."""
    architecture = checkpoint.description.architecture
    classes = checkpoint.description.data.classes
    known = architecture.classes if isinstance(architecture, UNetConfig) else classes
    return known > 0 and known == dataset.spec.classes


def _bits(found: Likelihoods) -> dict[str, Any]:
    at = (0.05, 0.25, 0.5, 0.75, 0.95)
    values = np.quantile(found.finished, at) if len(found.finished) else [math.nan] * len(at)
    return {
        **dataclasses.asdict(found.summary()),
        "quantiles": {f"{level:g}": float(v) for level, v in zip(at, values, strict=True)},
    }


def _about(dataset: Dataset, checkpoint: Checkpoint) -> dict[str, Any]:
    theirs = checkpoint.description.training.get("data_fingerprint")
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "trained_on": theirs == dataset.fingerprint,
        "train_images": len(dataset.train),
        "held_out_images": len(dataset.held_out),
    }


@contextmanager
def _timed(
    seconds: dict[str, float], name: str, say: Callable[[str], None], words: str
) -> Iterator[None]:
    say(words)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def _numbers(value: Any) -> Any:
    """The same with JSON's values only: no path, and null for what is no number."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

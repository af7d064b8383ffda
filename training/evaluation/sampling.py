"""Samples of a checkpoint, how they came about, and whether they show the class they should."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.denoiser import Denoiser
from model.follow import replay
from model.grids import uniform
from model.noise import image_seeds
from model.plan import from_prior
from model.prediction import x0_from_eps
from model.query import Answer, Condition, Query, run
from model.samplers import ddpm
from training.data import Split
from training.evaluation.frechet import Features

_ROWS = 256


def samples(
    checkpoint: Checkpoint,
    labels: Tensor,
    *,
    seed: int = 0,
    steps: int = 250,
    guidance: float = 1.0,
    device: str = "cpu",
) -> Tensor:
    """Ancestral samples x ``(rows, C, H, W)`` float64, one a label (−1: no class)."""
    seeds = torch.tensor(image_seeds(seed, len(labels)))
    return draw(checkpoint, labels, seeds, steps=steps, guidance=guidance, device=device)


def draw(
    checkpoint: Checkpoint,
    labels: Tensor,
    seeds: Tensor,
    *,
    steps: int = 250,
    guidance: float = 1.0,
    device: str = "cpu",
) -> Tensor:
    """The same, each image by its own seed ``(rows,)`` int64."""
    denoiser = checkpoint.denoiser(device)
    parts = [
        _draw(checkpoint, denoiser, labels[i : i + _ROWS], seeds[i : i + _ROWS], steps, guidance)
        for i in range(0, len(labels), _ROWS)
    ]
    return torch.cat([x for x, _ in parts])


def denoising(
    checkpoint: Checkpoint,
    labels: Tensor,
    seeds: Tensor,
    *,
    pictures: int = 10,
    steps: int = 250,
    device: str = "cpu",
) -> Tensor:
    """The samples of `draw` on their way: what the network takes for x_0, then the samples.

    ``(rows, pictures, C, H, W)`` float64; the calls shown are evenly spread over all.
    """
    denoiser = checkpoint.denoiser(device)
    watched = min(pictures - 1, steps)
    x, seen = _draw(checkpoint, denoiser, labels, seeds, steps, watched=watched)
    return torch.stack([*seen, x], dim=1)


def labels_like(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """As many of the given labels, drawn at random with replacement: int64 ``(count,)``, sorted.

    In exact proportions they would not be independent, and samples of them more even than images
    are: the kernel distance of a good model would come out below zero.
    """
    chosen = torch.randint(len(labels), (count,), generator=torch.Generator().manual_seed(seed))
    return labels[chosen].sort().values


def class_accuracy(levels: Tensor, labels: Tensor, real: Split) -> float:
    """Share of images that a logistic classifier, fitted on real ones, gives their label.

    levels ``(N, C, H, W)``, labels ``(N,)``.
    """
    known = real.levels
    score = linear_classifier((known / known.max()).flatten(1).numpy(), real.labels)
    return score((levels / known.max()).flatten(1).numpy(), labels)


def linear_classifier(of: Features, labels: Tensor) -> Callable[[Features, Tensor], float]:
    """A logistic regression on features ``(images, d)``, as its accuracy on others."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=2000).fit(of, labels.numpy())
    return lambda others, theirs: float(fitted.score(others, theirs.numpy()))


def _draw(
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    labels: Tensor,
    keys: Tensor,
    steps: int,
    guidance: float = 1.0,
    watched: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Samples, and x̂0 at so many of their calls."""
    description = checkpoint.description
    plan = ddpm(description.process, uniform(description.process, steps))
    wanted = {round((i + 0.5) * plan.calls / watched - 0.5) for i in range(watched)}
    seen: list[Tensor] = []
    calls = 0

    def watch(query: Query, answer: Answer) -> None:
        nonlocal calls
        if calls in wanted:
            x0 = x0_from_eps(query.u, answer.eps, query.log_snr)
            seen.append(x0.clamp(description.data.low, description.data.high))
        calls += 1

    condition = Condition(
        label=labels, guidance=torch.full((len(labels),), guidance, dtype=torch.float64)
    )
    x = from_prior(plan, keys, description.data.shape)
    return run(replay(plan, x, keys, condition), denoiser, watch).x, seen

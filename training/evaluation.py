"""Held-out likelihood, samples, and whether samples show the class that they were asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import likelihood
from model.checkpoint import Checkpoint
from model.follow import replay
from model.grids import uniform
from model.noise import image_seeds
from model.pf_ode import Adaptive
from model.plan import from_prior
from model.query import UNCONDITIONAL, Condition, run
from model.samplers import ddpm
from training.data import Split

_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """Mean over images of bits/dim, its standard error over images, and mean network calls."""

    mean: float
    standard_error: float
    images: int
    mean_nfe: float
    converged: bool


def held_out_bits_per_dim(
    checkpoint: Checkpoint,
    split: Split,
    *,
    conditional: bool,
    solver: Adaptive,
    probes: int,
    seed: int = 0,
) -> BitsPerDim:
    """PF-ODE bits/dim at the checkpoint's t_min, uniform dequantisation, one sample an image.

    conditional: given each image's class, log p(x | class); otherwise log p(x).
    """
    description = checkpoint.description
    denoiser = checkpoint.denoiser()
    values, calls, converged = [], [], []
    seeds = torch.tensor(image_seeds(seed, len(split)))
    for first in range(0, len(split), _ROWS):
        some = slice(first, first + _ROWS)
        levels = split.take(some).to(torch.float64)
        labels, keys = split.labels[some], seeds[some]
        x = description.data.to_model(levels, likelihood.dequantize(levels, keys))
        condition = Condition(
            label=labels if conditional else torch.full_like(labels, UNCONDITIONAL),
            guidance=torch.ones(len(levels), dtype=torch.float64),
        )
        operation = likelihood.log_likelihood(
            description.process,
            x,
            condition,
            solver,
            likelihood.Hutchinson(probes=probes),
            keys,
        )
        solved = run(operation, denoiser)
        values.append(description.data.bits_per_dim(solved.log_likelihood))
        calls.append(solved.nfe.double())
        converged.append(solved.converged)
    bits = torch.cat(values)
    return BitsPerDim(
        mean=float(bits.mean()),
        standard_error=float(bits.std() / math.sqrt(len(bits))),
        images=len(bits),
        mean_nfe=float(torch.cat(calls).mean()),
        converged=bool(torch.cat(converged).all()),
    )


def samples(
    checkpoint: Checkpoint,
    labels: Tensor,
    *,
    seed: int = 0,
    steps: int = 250,
    guidance: float = 1.0,
) -> Tensor:
    """Ancestral samples x ``(rows, C, H, W)`` float64, one a label (−1: no class)."""
    description = checkpoint.description
    keys = torch.tensor(image_seeds(seed, len(labels)))
    plan = ddpm(description.process, uniform(description.process, steps))
    condition = Condition(
        label=labels, guidance=torch.full((len(labels),), guidance, dtype=torch.float64)
    )
    x = from_prior(plan, keys, description.data.shape)
    return run(replay(plan, x, keys, condition), checkpoint.denoiser()).x


def class_accuracy(levels: Tensor, labels: Tensor, real: Split) -> float:
    """Share of images that a logistic classifier, fitted on real ones, gives their label.

    levels ``(N, C, H, W)``, labels ``(N,)``.
    """
    from sklearn.linear_model import LogisticRegression

    known = real.levels

    def flat(values: Tensor) -> NDArray[np.float64]:
        array: NDArray[np.float64] = (values / known.max()).flatten(1).numpy()
        return array

    classifier = LogisticRegression(max_iter=2000).fit(flat(known), real.labels.numpy())
    return float(classifier.score(flat(levels), labels.numpy()))

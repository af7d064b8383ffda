"""How likely a checkpoint finds held-out images, and the distribution of that for its metadata.

The settings' defaults are those of the service's `POST /loglik`, so that an image's percentile
among the stored quantiles (`model.quantiles`) compares what is alike.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import checkpoint as checkpoints
from model import likelihood
from model.checkpoint import Checkpoint
from model.noise import image_seeds
from model.pf_ode import Adaptive
from model.query import UNCONDITIONAL, Condition, run
from training.data import Split

_ROWS = 64

_QUANTILES = 101
_DIGITS = 6  # after the point; what lies beyond is the solver's error


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings:
    """Of the probability-flow ODE: Rademacher probes, uniform dequantisation, one sample an image.

    conditional: of log p(x | class) instead of log p(x).
    """

    tolerance: float = 1e-2
    max_calls: int = 2000
    probes: int = 8
    conditional: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BitsPerDim:
    """Bits/dim over some images; the figures are of those whose integral was finished.

    mean, standard_error: over images, what the probes add included.
    probe_error: the part of the standard error that is the probes', 0 for exact traces, NaN for a
        single one. discretization_error: root mean square over images of what the solver's steps
        may have moved one by.
    mean_nfe: network calls an image. unfinished: images that `max_calls` was too few for.
    """

    mean: float
    standard_error: float
    probe_error: float
    discretization_error: float
    images: int
    mean_nfe: float
    unfinished: int

    @property
    def converged(self) -> bool:
        """Whether all were finished."""
        return self.unfinished == 0


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """Of each image, ``(images,)``: bits/dim in float64, two errors of it, nfe, converged."""

    bits_per_dim: Tensor
    probe_error: Tensor
    discretization_error: Tensor
    nfe: Tensor
    converged: Tensor

    @property
    def finished(self) -> NDArray[np.float64]:
        """Bits/dim of the images whose integral was finished."""
        values: NDArray[np.float64] = self.bits_per_dim[self.converged].numpy()
        return values

    def summary(self) -> BitsPerDim:
        """Means and errors over the images."""
        bits, count = self.finished, int(self.converged.sum())
        probe = self.probe_error[self.converged].square().sum().sqrt() / max(count, 1)
        discretization = self.discretization_error[self.converged].square().mean().sqrt()
        return BitsPerDim(
            mean=float(bits.mean()) if count else math.nan,
            standard_error=float(bits.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
            probe_error=float(probe),
            discretization_error=float(discretization),
            images=count,
            mean_nfe=float(self.nfe.double().mean()),
            unfinished=len(self.converged) - count,
        )


def likelihoods(
    checkpoint: Checkpoint,
    levels: Tensor,
    labels: Tensor,
    settings: LikelihoodSettings,
    device: str = "cpu",
) -> Likelihoods:
    """PF-ODE bits/dim at the checkpoint's t_min of levels ``(images, C, H, W)``.

    labels: int64 ``(images,)``, looked at for conditional ones only.
    """
    spec, denoiser = checkpoint.description.data, checkpoint.denoiser(device)
    seeds = torch.tensor(image_seeds(settings.seed, len(levels)))
    solver = Adaptive(tolerance=settings.tolerance, max_calls=settings.max_calls)
    label = labels if settings.conditional else torch.full((len(levels),), UNCONDITIONAL)
    found = []
    for first in range(0, len(levels), _ROWS):
        some = slice(first, first + _ROWS)
        given, keys = levels[some].to(torch.float64), seeds[some]
        operation = likelihood.log_likelihood(
            checkpoint.description.process,
            spec.to_model(given, likelihood.dequantize(given, keys)),
            Condition(label=label[some], guidance=torch.ones(len(given), dtype=torch.float64)),
            solver,
            likelihood.Hutchinson(probes=settings.probes),
            keys,
        )
        found.append(run(operation, denoiser))
    unit = 1.0 / (spec.dimensions * math.log(2.0))  # nats to bits a dimension
    return Likelihoods(
        bits_per_dim=spec.bits_per_dim(torch.cat([one.log_likelihood for one in found])),
        probe_error=torch.cat([one.probe_error for one in found]) * unit,
        discretization_error=torch.cat([one.discretization_error for one in found]) * unit,
        nfe=torch.cat([one.nfe for one in found]),
        converged=torch.cat([one.converged for one in found]),
    )


def held_out_bits_per_dim(
    checkpoint: Checkpoint,
    split: Split,
    *,
    conditional: bool,
    solver: Adaptive,
    probes: int,
    seed: int = 0,
) -> BitsPerDim:
    """PF-ODE bits/dim over a split, given each image's class or not."""
    settings = LikelihoodSettings(
        tolerance=solver.tolerance,
        max_calls=solver.max_calls,
        probes=probes,
        conditional=conditional,
        seed=seed,
    )
    return likelihoods(checkpoint, split.levels, split.labels, settings).summary()


def quantiles_entry(
    checkpoint: Checkpoint, found: Likelihoods, settings: LikelihoodSettings
) -> dict[str, Any]:
    """What a checkpoint's metadata say under "quantiles": see `model.quantiles`.

    Raises `ValueError` where integrals were not finished: to leave those images out, which are
    mostly the unusual ones, would bend the distribution.
    """
    summary = found.summary()
    if not summary.converged:
        raise ValueError(
            f"{summary.unfinished} of {len(found.converged)} integrals were not finished in "
            f"{settings.max_calls} network calls; allow more"
        )
    levels = np.linspace(0.0, 1.0, _QUANTILES)
    values = np.quantile(found.finished, levels)
    entry = {
        "levels": [round(float(level), 2) for level in levels],
        "values": [round(float(value), _DIGITS) for value in values],
        "images": summary.images,
        "mean": round(summary.mean, _DIGITS),
        "standard_error": round(summary.standard_error, _DIGITS),
        # As a request to /loglik would say it.
        "method": "pf_ode",
        "solver": {
            "name": "adaptive",
            "tolerance": settings.tolerance,
            "max_calls": settings.max_calls,
        },
        "divergence": {
            "kind": "hutchinson",
            "probes": settings.probes,
            "distribution": "rademacher",
        },
        "dequantization": {"kind": "uniform", "samples": 1},
        "given_class": settings.conditional,
        "seed": settings.seed,
        "t_min": checkpoint.description.process.t_min,
    }
    return {"bits_per_dim": entry}


def store_quantiles(path: Path, entry: dict[str, Any]) -> Checkpoint:
    """Rewrite a checkpoint with these quantiles in its metadata, and load it again.

    The weights stay as they are, to the bit; the digest is another. The file is replaced whole, and
    a card beside it that names the old digest gets the new one.
    """
    checkpoint = checkpoints.load(path)
    training = {**checkpoint.description.training, "quantiles": entry}
    description = dataclasses.replace(checkpoint.description, training=training)
    checkpoints.save(path, description, checkpoint.network.state_dict())
    stored = checkpoints.load(path)
    card = path.with_suffix(".md")
    if card.exists():
        card.write_text(card.read_text().replace(checkpoint.digest, stored.digest))
    return stored

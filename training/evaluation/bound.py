"""The evidence lower bound of held-out images, and the network's error at each noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.elbo import Elbo, elbo
from model.noise import image_seeds
from model.query import UNCONDITIONAL, Condition, run
from training.evaluation.frechet import Estimate


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The network's error by noise level, lists of one length.

    log_snr: from noise to data. loss: mean over images of ‖ε − ε̂‖²/D, the simple training loss.
    standard_error: over images. bits: what a unit of log-SNR there adds to the bound, in bits/dim.
    """

    log_snr: list[float]
    loss: list[float]
    standard_error: list[float]
    bits: list[float]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The bound on −log p(levels) and its terms, in bits/dim, each with its error over images.

    draws, recon_draws: network calls an image for the diffusion term and for the reconstruction.
    """

    total: Estimate
    prior: Estimate
    diffusion: Estimate
    recon: Estimate
    images: int
    draws: int
    recon_draws: int
    curve: Curve


def bound(
    checkpoint: Checkpoint,
    levels: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 64,
    recon_draws: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> Bound:
    """The bound in continuous time for levels ``(images, C, H, W)``; labels make it conditional.

    The places on the log-SNR axis are the same for all images. Raises `ValueError` for a single
    image, whose figures would have no error.
    """
    spec = checkpoint.description.data
    count = len(levels)
    if count < 2:
        raise ValueError(f"at least 2 images are needed for an error over images, got {count}")
    label = torch.full((count,), UNCONDITIONAL) if labels is None else labels
    found: Elbo = run(
        elbo(
            checkpoint.description.process,
            spec,
            levels.to(torch.float64),
            Condition(label=label, guidance=torch.ones(count, dtype=torch.float64)),
            torch.tensor(image_seeds(seed, count)),
            draws=draws,
            recon_draws=recon_draws,
        ),
        checkpoint.denoiser(device),
    )
    unit = 1.0 / (spec.dimensions * math.log(2.0))

    def over_images(nats: Tensor) -> Estimate:
        error = float(nats.std() * unit) / math.sqrt(count)
        return Estimate(value=float(nats.mean() * unit), standard_error=error)

    loss = found.curve * (2.0 / spec.dimensions)  # of ½ ‖ε − ε̂‖²
    return Bound(
        total=over_images(found.total),
        prior=over_images(found.prior),
        diffusion=over_images(found.diffusion),
        recon=over_images(found.recon),
        images=count,
        draws=draws,
        recon_draws=recon_draws,
        curve=Curve(
            log_snr=found.log_snr.tolist(),
            loss=loss.mean(0).tolist(),
            standard_error=(loss.std(0) / math.sqrt(count)).tolist(),
            bits=(found.curve.mean(0) * unit).tolist(),
        ),
    )

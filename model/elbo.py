"""The evidence lower bound of a diffusion model, term by term.

Ho et al. 2020, eq. 5, in the form of Kingma et al. 2021 (VDM), eq. 11–18. In nats,

    −log p(v) <= L_prior + L_diffusion + L_recon

    L_prior      KL( q(x_T | x) ‖ N(0, (α_T² + σ_T²) I) )
    L_diffusion  Σ_i KL( q(x_s | x_t, x) ‖ p(x_s | x_t) )
                 = ½ Σ_i (SNR(s)/SNR(t) − 1) E ‖ε − ε̂(x_t, t)‖²       T steps t_min = t_0 < … < t_T
                 → ½ ∫ E ‖ε − ε̂‖² dλ                                 T → ∞
    L_recon      −E log p(v | x_{t_min}): a Gaussian around x̂0, integrated over the level's cell
                 (Ho et al. 2020, eq. 13)

x is the centre of the level's cell: the bound is on the probability of the level itself, so no
dequantisation is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data import DataSpec
from model.noise import Stream, normal, uniform
from model.prediction import angle, rows, x0_from_eps
from model.process import Process
from model.query import Answer, Condition, Operation, Query


@dataclass(frozen=True, kw_only=True)
class Elbo:
    """All in nats, ``(rows,)`` float64 but the curve; total = prior + diffusion + recon.

    diffusion_error, recon_error: standard errors over the draws; NaN for a single one.
    log_snr, curve: ``(draws,)`` and ``(rows, draws)``: where the diffusion term was sampled, and
    the integrand ½ ‖ε − ε̂‖² there.
    nfe: network calls an image.
    """

    prior: Tensor
    diffusion: Tensor
    diffusion_error: Tensor
    recon: Tensor
    recon_error: Tensor
    log_snr: Tensor
    curve: Tensor
    nfe: int

    @property
    def total(self) -> Tensor:
        """The bound on −log p(v)."""
        return self.prior + self.diffusion + self.recon


def elbo(
    process: Process,
    spec: DataSpec,
    levels: Tensor,
    condition: Condition,
    seeds: Tensor,
    *,
    steps: int | None = None,
    draws: int = 64,
    recon_draws: int = 8,
) -> Operation[Elbo]:
    """The bound for levels ``(rows, C, H, W)`` float64; one network call a draw.

    steps: T, on a grid uniform in log-SNR; None for the continuous-time limit. The diffusion term
    is estimated from ``draws`` places spread evenly over the steps (all of them, once each, when
    draws = steps), the reconstruction from ``recon_draws``.
    """
    if steps is not None and draws > steps:
        raise ValueError(f"there are {steps} steps to draw from, got draws={draws}")
    x = spec.to_model(levels)
    ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    log_snr, weight = _places(ends, steps, draws, seeds)
    losses = []
    for i in range(draws):
        noise = normal(seeds, Stream.STEP, i, spec.shape)
        answer = yield _query(x, noise, log_snr[i], condition, i, draws + recon_draws)
        losses.append(0.5 * (noise - answer.eps).square().flatten(1).sum(1))
    recons = []
    for i in range(recon_draws):
        noise = normal(seeds, Stream.STEP, draws + i, spec.shape)
        query = _query(x, noise, ends[1], condition, draws + i, draws + recon_draws)
        answer = yield query
        recons.append(_recon(spec, levels, query, answer))
    curve, recon = torch.stack(losses, dim=1), torch.stack(recons, dim=1)
    terms = curve * weight
    return Elbo(
        prior=_prior(process, x),
        diffusion=terms.mean(1),
        # Every step taken once is the sum itself: only its noise is random.
        diffusion_error=terms.std(1) / math.sqrt(draws),
        recon=recon.mean(1),
        recon_error=recon.std(1) / math.sqrt(recon_draws),
        log_snr=log_snr,
        curve=curve,
        nfe=draws + recon_draws,
    )


def _places(ends: Tensor, steps: int | None, draws: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Log-SNR of each draw, and what its ½ ‖ε − ε̂‖² counts: ``(draws,)`` each.

    Draws are stratified over [λ(t_max), λ(t_min)], the same places for all images.
    """
    span = ends[1] - ends[0]
    if steps is None:
        shift = uniform(seeds[:1], Stream.PRIOR, 0, (1,))[0, 0]
        quantile = (torch.arange(draws, dtype=torch.float64) + shift) / draws
        return ends[0] + span * quantile, span.expand(draws)
    index = ((torch.arange(draws, dtype=torch.float64) + 0.5) * steps / draws).floor()
    width = span / steps
    return ends[0] + width * index, (steps * torch.expm1(width)).expand(draws)


def _query(
    x: Tensor, noise: Tensor, log_snr: Tensor, condition: Condition, call: int, calls: int
) -> Query:
    """Ask at x with this noise at this log-SNR, for the ``call``-th of so many times."""
    level = log_snr.expand(len(x))
    cos, sin = angle(level)
    return Query(
        u=rows(cos, x) * x + rows(sin, x) * noise,
        log_snr=level,
        condition=condition,
        reproducible=True,
        progress=call / calls,
        calls_left=calls - call,
    )


def _prior(process: Process, x: Tensor) -> Tensor:
    """KL of two Gaussians with diagonal covariance, in the standardised state."""
    t = torch.tensor([process.t_max], dtype=torch.float64)
    cos, sin = angle(process.log_snr(t))
    mean = (cos * x).flatten(1).square().sum(1)
    dimensions = x[0].numel()
    return 0.5 * (mean + dimensions * (sin.square() - 1.0 - 2.0 * sin.log()))


def _recon(spec: DataSpec, levels: Tensor, query: Query, answer: Answer) -> Tensor:
    """−log of the decoder's mass on the level's cell; the outermost cells reach to infinity."""
    x0 = x0_from_eps(query.u, answer.eps, query.log_snr)
    scale = rows((-0.5 * query.log_snr).exp(), x0)  # σ/α
    infinity = torch.tensor(math.inf, dtype=torch.float64)
    below = torch.where(levels <= 0.0, -infinity, (spec.to_model(levels, 0.0) - x0) / scale)
    top = levels >= spec.levels - 1.0
    above = torch.where(top, infinity, (spec.to_model(levels, 1.0) - x0) / scale)
    # Measured from the nearer tail, so that a small mass far from the mean keeps its digits.
    mirrored = below > 0
    low, high = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    log_mass = log_high + torch.log(-torch.expm1(torch.clamp(log_low - log_high, max=-1e-300)))
    total: Tensor = -log_mass.flatten(1).sum(1)
    return total

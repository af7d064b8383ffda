"""The log-likelihood of data under the probability-flow ODE.

Song et al. 2021, eq. 39 (Chen et al. 2018 for the change of variables). With the standardised
state u of `model.flow`,

    log p(x) = log N(u_T; 0, I) + ∫ (tr ∂ε/∂u − D tanh τ) dτ − D log sqrt(α² + σ²)(t_min)

from t_min to t_max. The trace is exact (D vector–Jacobian products a call) or Hutchinson's
estimate pᵀ (∂ε/∂u) p (Hutchinson 1990; Grathwohl et al. 2019) with K probes that are fixed for
the whole solve; each probe has its own integral, so the answer carries its standard error. x is
taken as the process's state at t_min: what happens below t_min is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.flow import Arrived, Flow, clock
from model.noise import Stream, normal, rademacher, uniform
from model.pf_ode import Adaptive
from model.process import Process
from model.query import Condition, Operation


@dataclass(frozen=True, kw_only=True)
class Hutchinson:
    """K fixed probes an image, of independent signs (lower variance) or standard normal."""

    probes: int = 8
    distribution: Literal["rademacher", "gaussian"] = "rademacher"

    def draw(self, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The probes ``(rows, K, *shape)`` keyed by (seed, PROBE)."""
        noise = rademacher if self.distribution == "rademacher" else normal
        return noise(seeds, Stream.PROBE, 0, (self.probes, *shape))


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The trace itself, by D products."""


Divergence = Hutchinson | Exact


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """All ``(rows,)`` float64, in nats, but nfe (network calls) and converged.

    log_likelihood = prior + volume.
    probe_error: standard error over the probes; 0 for the exact trace, NaN for a single probe,
        which cannot tell.
    discretization_error: estimate of how far the solver's steps have moved log_likelihood.
    latent: u at t_max, ``(rows, C, H, W)``.
    """

    log_likelihood: Tensor
    prior: Tensor
    volume: Tensor
    probe_error: Tensor
    discretization_error: Tensor
    latent: Tensor
    nfe: Tensor
    converged: Tensor


def log_likelihood(
    process: Process,
    x: Tensor,
    condition: Condition,
    solver: Adaptive,
    divergence: Divergence,
    seeds: Tensor,
    *,
    nats: float | None = None,
) -> Operation[LogLikelihood]:
    """log p of x ``(rows, C, H, W)`` at t_min, float64, nats; seeds ``(rows,)`` key the probes.

    nats: tolerance of a step for the log-density itself; the solver's tolerance a dimension if
    left out.
    """
    shape = tuple(x.shape[1:])
    dimensions = math.prod(shape)
    probes = divergence.draw(seeds, shape) if isinstance(divergence, Hutchinson) else None
    start, end = clock(process)
    scale = process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    arrived: Arrived = yield Flow(
        u=x / scale,
        start=start,
        end=end,
        condition=condition,
        tolerance=solver.tolerance,
        max_calls=solver.max_calls,
        probes=probes,
        exact_trace=probes is None,
        nats=solver.tolerance * dimensions if nats is None else nats,
    )
    latent, growth = arrived.u.flatten(1), arrived.growth
    prior = -0.5 * (latent.square().sum(1) + dimensions * math.log(2.0 * math.pi))
    volume = growth.mean(1) - dimensions * scale.log()
    return LogLikelihood(
        log_likelihood=prior + volume,
        prior=prior,
        volume=volume,
        probe_error=_probe_error(growth, exact=probes is None),
        discretization_error=arrived.error,
        latent=arrived.u,
        nfe=arrived.nfe,
        converged=arrived.converged,
    )


def dequantize(levels: Tensor, seeds: Tensor) -> Tensor:
    """Places u in [0, 1) in each level's cell, uniform and keyed by the seed: as ``levels``."""
    return uniform(seeds, Stream.DEQUANTIZATION, 0, tuple(levels.shape[1:]))


def _probe_error(growth: Tensor, *, exact: bool) -> Tensor:
    if exact:
        return torch.zeros(len(growth), dtype=torch.float64)
    if growth.shape[1] == 1:
        return torch.full((len(growth),), math.nan, dtype=torch.float64)
    return growth.std(1) / math.sqrt(growth.shape[1])

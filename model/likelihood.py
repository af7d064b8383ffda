"""The log-likelihood of data under the probability-flow ODE.

Song et al. 2021, eq. 39 (Chen et al. 2018 for the change of variables). With the standardised
state u of `model.pf_ode`,

    log p(x) = log N(u_T; 0, I) + ∫ tr(∂v/∂u) dt − D log sqrt(α² + σ²)(t_min)

    tr ∂v/∂u = ½ λ' sin φ (D sin φ − tr ∂ε/∂u)

from t_min to t_max. The trace is exact (D vector–Jacobian products a call) or Hutchinson's
estimate pᵀ (∂ε/∂u) p (Hutchinson 1990; Grathwohl et al. 2019) with K Rademacher probes that are
fixed for the whole solve; each probe has its own integral, so the answer carries its standard
error. x is taken as the process's state at t_min: what happens below t_min is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model import adaptive
from model.noise import Stream, rademacher, uniform
from model.pf_ode import Adaptive, velocity, velocity_divergence
from model.process import Process
from model.query import Condition, Operation, Query


@dataclass(frozen=True, kw_only=True)
class Hutchinson:
    """K fixed Rademacher probes an image."""

    probes: int = 8


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The trace itself, by D products."""


Divergence = Hutchinson | Exact


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """All ``(rows,)`` float64, in nats, but nfe (network calls) and converged.

    log_likelihood = prior + volume. probe_error is the standard error of the volume over the
    probes: 0 for the exact trace, NaN for a single probe, which cannot tell.
    """

    log_likelihood: Tensor
    prior: Tensor
    volume: Tensor
    probe_error: Tensor
    nfe: Tensor
    converged: Tensor


def log_likelihood(
    process: Process,
    x: Tensor,
    condition: Condition,
    solver: Adaptive,
    divergence: Divergence,
    seeds: Tensor,
) -> Operation[LogLikelihood]:
    """log p of x ``(rows, C, H, W)`` at t_min, float64, nats; seeds ``(rows,)`` key the probes."""
    shape = tuple(x.shape[1:])
    dimensions = math.prod(shape)
    probes = _probes(divergence, seeds, shape)
    columns = 1 if probes is None else probes.shape[1]

    def field(y: Tensor, t: Tensor, index: Tensor, progress: float) -> Operation[Tensor]:
        u = y[:, :dimensions].reshape(-1, *shape)
        answer = yield Query(
            u=u,
            log_snr=process.log_snr(t),
            condition=condition.take(index),
            image=index,
            probes=None if probes is None else probes[index],
            exact_trace=probes is None,
            reproducible=True,
            progress=progress,
        )
        if answer.divergence is None:
            raise RuntimeError("the denoiser left out the divergence that the query asked for")
        flow = velocity(process, t, u, answer.eps)
        growth = velocity_divergence(process, t, dimensions, answer.divergence)
        return torch.cat((flow.flatten(1), growth), dim=1)

    start = process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    y = torch.cat((x.flatten(1) / start, torch.zeros(len(x), columns, dtype=torch.float64)), dim=1)
    solution = yield from adaptive.solve(
        field,
        y,
        process.t_min,
        process.t_max,
        _norm(dimensions, solver.tolerance),
        max_calls=solver.max_calls,
    )
    latent, growth = solution.y[:, :dimensions], solution.y[:, dimensions:]
    prior = -0.5 * (latent.square().sum(1) + dimensions * math.log(2.0 * math.pi))
    volume = growth.mean(1) - dimensions * start.log()
    return LogLikelihood(
        log_likelihood=prior + volume,
        prior=prior,
        volume=volume,
        probe_error=_probe_error(growth, exact=probes is None),
        nfe=solution.nfe,
        converged=solution.converged,
    )


def dequantize(levels: Tensor, seeds: Tensor) -> Tensor:
    """Places u in [0, 1) in each level's cell, uniform and keyed by the seed: as ``levels``."""
    return uniform(seeds, Stream.DEQUANTIZATION, 0, tuple(levels.shape[1:]))


def _probes(divergence: Divergence, seeds: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    if isinstance(divergence, Exact):
        return None
    return rademacher(seeds, Stream.PROBE, 0, (divergence.probes, *shape))


def _probe_error(growth: Tensor, *, exact: bool) -> Tensor:
    if exact:
        return torch.zeros(len(growth), dtype=torch.float64)
    if growth.shape[1] == 1:
        return torch.full((len(growth),), math.nan, dtype=torch.float64)
    return growth.std(1) / math.sqrt(growth.shape[1])


def _norm(dimensions: int, tolerance: float) -> adaptive.ErrorNorm:
    """The state's relative error, or the log-density's against ``tolerance`` nats a dimension."""
    state = adaptive.relative_norm(tolerance)

    def norm(error: Tensor, size: Tensor) -> Tensor:
        growth = error[:, dimensions:].mean(1).abs() / (tolerance * dimensions)
        return torch.maximum(state(error[:, :dimensions], size[:, :dimensions]), growth)

    return norm

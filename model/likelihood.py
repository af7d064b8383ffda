"""The log-likelihood of data under the probability-flow ODE.

Song et al. 2021, eq. 39 (Chen et al. 2018 for the change of variables). With the standardised
state u of `model.pf_ode`,

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

from model import adaptive
from model.noise import Stream, normal, rademacher, uniform
from model.pf_ode import Adaptive, clock, log_snr_at, velocity, velocity_divergence
from model.process import Process
from model.query import Answer, Condition, Operation, Query


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
    columns = 1 if probes is None else probes.shape[1]

    def field(y: Tensor, tau: Tensor, index: Tensor, progress: float) -> Operation[Tensor]:
        u = y[:, :dimensions].reshape(-1, *shape)
        mine = None if probes is None else probes[index]
        answer = yield Query(
            u=u,
            log_snr=log_snr_at(tau),
            condition=condition.take(index),
            image=index,
            probes=mine,
            exact_trace=probes is None,
            reproducible=True,
            progress=progress,
        )
        flow = velocity(tau, u, answer.eps)
        growth = velocity_divergence(tau, dimensions, _traces(answer, mine))
        return torch.cat((flow.flatten(1), growth), dim=1)

    start = process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    y = torch.cat((x.flatten(1) / start, torch.zeros(len(x), columns, dtype=torch.float64)), dim=1)
    local = _LocalErrors(dimensions, len(x))
    solution = yield from adaptive.solve(
        field,
        y,
        *clock(process),
        _norm(
            dimensions, solver.tolerance, solver.tolerance * dimensions if nats is None else nats
        ),
        max_calls=solver.max_calls,
        observe=local,
    )
    latent, growth = solution.y[:, :dimensions], solution.y[:, dimensions:]
    prior = -0.5 * (latent.square().sum(1) + dimensions * math.log(2.0 * math.pi))
    volume = growth.mean(1) - dimensions * start.log()
    return LogLikelihood(
        log_likelihood=prior + volume,
        prior=prior,
        volume=volume,
        probe_error=_probe_error(growth, exact=probes is None),
        discretization_error=local.total,
        latent=latent.reshape(x.shape),
        nfe=solution.nfe,
        converged=solution.converged,
    )


def dequantize(levels: Tensor, seeds: Tensor) -> Tensor:
    """Places u in [0, 1) in each level's cell, uniform and keyed by the seed: as ``levels``."""
    return uniform(seeds, Stream.DEQUANTIZATION, 0, tuple(levels.shape[1:]))


def _traces(answer: Answer, probes: Tensor | None) -> Tensor:
    """tr ∂ε/∂u, or its estimate by each probe: ``(rows, K)``."""
    if probes is not None and answer.products is not None:
        return (answer.products * probes).flatten(2).sum(2)
    if answer.trace is None:
        raise RuntimeError("the denoiser left out the divergence that the query asked for")
    return answer.trace[:, None]


class _LocalErrors:
    """How far the local errors of all steps may have moved log p: the sum of their sizes.

    An error (δu, δl) made on the way moves the answer by ∇ log p(u)·δu + δl, to first order, since
    from there on the solver follows another trajectory of the same flow. The score is known:
    −ε/sin φ, and ε = du/dτ + sin φ u. The two parts are not let cancel, nor are the steps: at
    tolerances of 1e-5 and below the sum then errs high; at 1e-3 the local errors themselves are
    only known to their size, and about half of the images are off by more.
    """

    def __init__(self, dimensions: int, count: int) -> None:
        self._dimensions = dimensions
        self.total = torch.zeros(count, dtype=torch.float64)

    def __call__(self, index: Tensor, tau: Tensor, y: Tensor, slope: Tensor, error: Tensor) -> None:
        d = self._dimensions
        sin = torch.tanh(tau)
        eps = slope[:, :d] + sin[:, None] * y[:, :d]
        moved = (eps * error[:, :d]).sum(1) / sin
        self.total[index] += moved.abs() + error[:, d:].mean(1).abs()


def _probe_error(growth: Tensor, *, exact: bool) -> Tensor:
    if exact:
        return torch.zeros(len(growth), dtype=torch.float64)
    if growth.shape[1] == 1:
        return torch.full((len(growth),), math.nan, dtype=torch.float64)
    return growth.std(1) / math.sqrt(growth.shape[1])


def _norm(dimensions: int, tolerance: float, nats: float) -> adaptive.ErrorNorm:
    """The larger of the state's relative error and the log-density's in units of ``nats``."""
    state = adaptive.relative_norm(tolerance)

    def norm(error: Tensor, size: Tensor) -> Tensor:
        growth = error[:, dimensions:].mean(1).abs() / nats
        return torch.maximum(state(error[:, :dimensions], size[:, :dimensions]), growth)

    return norm

"""The probability-flow ODE: encode, decode, and everything that integrates along it.

Song et al. 2021, eq. 13. Along it x̂0 and ε are held while the noise level moves. For the
standardised state u = cos φ x_0 + sin φ ε of any process (see `model.prediction`) that is

    du/dt = ½ λ'(t) sin φ (sin φ u − ε)

so only the log-SNR λ(t) matters. A latent is u at t_max: N(0, I) whatever the process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model import adaptive, grids, plan
from model.prediction import angle, rows
from model.process import Process
from model.query import Condition, Operation, Query
from model.samplers import ODE_SOLVERS


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Embedded Runge–Kutta of order 5(4) with a step size an image; ``max_calls`` an image."""

    tolerance: float = 1e-6
    max_calls: int = 2000


@dataclass(frozen=True, kw_only=True)
class FixedGrid:
    """A solver of `model.samplers.ODE_SOLVERS` by name, ``steps`` steps uniform in log-SNR."""

    name: str = "heun"
    steps: int = 50

    def __post_init__(self) -> None:
        if self.name not in ODE_SOLVERS:
            raise ValueError(f"unknown ODE solver {self.name!r}; there are {sorted(ODE_SOLVERS)}")


Solver = Adaptive | FixedGrid


@dataclass(frozen=True, kw_only=True)
class Flowed:
    """u ``(rows, C, H, W)`` float64 at the other end, with each image's nfe and convergence."""

    u: Tensor
    nfe: Tensor
    converged: Tensor


def velocity(process: Process, t: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """du/dt = ½ λ' sin φ (sin φ u − ε); t ``(rows,)``, u and eps ``(rows, …)``."""
    sin, weight = _sin_and_weight(process, t)
    return rows(weight, u) * (rows(sin, u) * u - eps)


def velocity_divergence(
    process: Process, t: Tensor, dimensions: int, eps_divergence: Tensor
) -> Tensor:
    """tr ∂(du/dt)/∂u = ½ λ' sin φ (D sin φ − tr ∂ε/∂u); eps_divergence ``(rows, K)``."""
    sin, weight = _sin_and_weight(process, t)
    return weight[:, None] * (dimensions * sin[:, None] - eps_divergence)


def _sin_and_weight(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    _, sin = angle(process.log_snr(t))
    return sin, 0.5 * process.log_snr_slope(t) * sin


def encode(process: Process, x: Tensor, condition: Condition, solver: Solver) -> Operation[Flowed]:
    """x at t_min ``(rows, C, H, W)`` float64 to its latent, u at t_max."""
    u = x / process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    return (yield from _flow(process, u, process.t_min, process.t_max, condition, solver))


def decode(
    process: Process, latent: Tensor, condition: Condition, solver: Solver
) -> Operation[Flowed]:
    """A latent ``(rows, C, H, W)`` float64 to x at t_min, in ``u`` of what it returns."""
    flowed = yield from _flow(process, latent, process.t_max, process.t_min, condition, solver)
    scale = process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    return Flowed(u=flowed.u * scale, nfe=flowed.nfe, converged=flowed.converged)


def _flow(
    process: Process, u: Tensor, start: float, end: float, condition: Condition, solver: Solver
) -> Operation[Flowed]:
    if isinstance(solver, FixedGrid):
        return (yield from _flow_on_grid(process, u, start, end, condition, solver))
    shape = u.shape[1:]

    def field(y: Tensor, t: Tensor, index: Tensor, progress: float) -> Operation[Tensor]:
        state = y.reshape(-1, *shape)
        answer = yield Query(
            u=state,
            log_snr=process.log_snr(t),
            condition=condition.take(index),
            image=index,
            reproducible=True,
            progress=progress,
        )
        return velocity(process, t, state, answer.eps).flatten(1)

    solution = yield from adaptive.solve(
        field,
        u.flatten(1),
        start,
        end,
        adaptive.relative_norm(solver.tolerance),
        max_calls=solver.max_calls,
    )
    return Flowed(u=solution.y.reshape(u.shape), nfe=solution.nfe, converged=solution.converged)


def _flow_on_grid(
    process: Process, u: Tensor, start: float, end: float, condition: Condition, solver: FixedGrid
) -> Operation[Flowed]:
    times = grids.log_snr(process, solver.steps + 1)
    if start < end:
        times = times.flip(0)
    table = ODE_SOLVERS[solver.name](process, times)
    scale_start, scale_end = process.scale(torch.tensor([start, end], dtype=torch.float64))
    no_noise = torch.zeros(len(u), dtype=torch.int64)
    x = yield from plan.replay(table, u * scale_start, no_noise, condition, reproducible=True)
    return Flowed(
        u=x / scale_end,
        nfe=torch.full((len(u),), table.calls),
        converged=torch.isfinite(x).flatten(1).all(1),
    )

"""Encode and decode: images to latents along the probability-flow ODE of `model.flow`, and back.

By the adaptive solver, or by a Plan on a fixed grid.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from model import grids
from model.flow import Arrived, Flow, clock
from model.follow import replay
from model.process import Process
from model.query import Condition, Operation
from model.samplers import ODE_SOLVERS, reversible


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Embedded Runge–Kutta of order 5(4) with a step size an image; ``max_calls`` an image."""

    tolerance: float = 1e-6
    max_calls: int = 2000


@dataclass(frozen=True, kw_only=True)
class FixedGrid:
    """``steps`` steps of a solver of `ODE_SOLVERS`, on one of `model.grids.WHOLE_GRIDS`."""

    name: str = "heun"
    steps: int = 50
    grid: str = "log_snr"

    def __post_init__(self) -> None:
        if self.name not in ODE_SOLVERS:
            raise ValueError(f"unknown ODE solver {self.name!r}; there are {sorted(ODE_SOLVERS)}")

    @property
    def paired(self) -> bool:
        """Whether its state is a pair, so that a latent needs its companion to be decoded."""
        return ODE_SOLVERS[self.name] is reversible


Solver = Adaptive | FixedGrid


@dataclass(frozen=True, kw_only=True)
class Flowed:
    """Where images arrived: end ``(rows, C, H, W)`` float64, latents or images at t_min.

    companion: the second copy that a paired solver keeps, shaped as ``end``; else None.
    nfe ``(rows,)`` int64 network calls; converged ``(rows,)`` bool.
    """

    end: Tensor
    companion: Tensor | None
    nfe: Tensor
    converged: Tensor


def encode(process: Process, x: Tensor, condition: Condition, solver: Solver) -> Operation[Flowed]:
    """Images x at t_min ``(rows, C, H, W)`` float64 to latents, u at t_max."""
    return (yield from _flow(process, x, None, condition, solver, encoding=True))


def decode(
    process: Process,
    latent: Tensor,
    condition: Condition,
    solver: Solver,
    companion: Tensor | None = None,
) -> Operation[Flowed]:
    """Latents ``(rows, C, H, W)`` float64 to images x at t_min.

    Raises ValueError where a paired solver gets no companion: it decodes what it encoded only.
    """
    if isinstance(solver, FixedGrid) and solver.paired and companion is None:
        raise ValueError(
            f"the solver {solver.name!r} decodes a latent together with the companion that its "
            "encoding gave; decode a latent alone by another solver"
        )
    return (yield from _flow(process, latent, companion, condition, solver, encoding=False))


def _flow(
    process: Process,
    begin: Tensor,
    companion: Tensor | None,
    condition: Condition,
    solver: Solver,
    *,
    encoding: bool,
) -> Operation[Flowed]:
    """Between images (in x) and latents (in u)."""
    scale = process.scale(torch.tensor(process.t_min, dtype=torch.float64))
    u = begin / scale if encoding else begin
    if isinstance(solver, FixedGrid):
        flowed = yield from _on_grid(process, u, companion, condition, solver, encoding)
    else:
        flowed = yield from _adaptively(process, u, condition, solver, encoding)
    if encoding:
        return flowed
    return dataclasses.replace(flowed, end=flowed.end * scale)


def _adaptively(
    process: Process, u: Tensor, condition: Condition, solver: Adaptive, encoding: bool
) -> Operation[Flowed]:
    start, end = clock(process) if encoding else clock(process)[::-1]
    arrived: Arrived = yield Flow(
        u=u,
        start=start,
        end=end,
        condition=condition,
        tolerance=solver.tolerance,
        max_calls=solver.max_calls,
    )
    return Flowed(end=arrived.u, companion=None, nfe=arrived.nfe, converged=arrived.converged)


def _on_grid(
    process: Process,
    u: Tensor,
    companion: Tensor | None,
    condition: Condition,
    solver: FixedGrid,
    encoding: bool,
) -> Operation[Flowed]:
    times = grids.WHOLE_GRIDS[solver.grid](process, solver.steps + 1)
    if encoding:
        times = times.flip(0)
    plan = ODE_SOLVERS[solver.name](process, times)
    first, last = process.scale(times[[0, -1]])
    history = u if companion is None else companion
    final = yield from replay(
        plan,
        u * first,
        torch.zeros(len(u), dtype=torch.int64),  # it draws no noise
        condition,
        h=history * first if solver.paired else None,
        reproducible=True,
    )
    return Flowed(
        end=final.x / last,
        companion=final.h / last if solver.paired else None,
        nfe=torch.full((len(u),), plan.calls),
        converged=torch.isfinite(final.x).flatten(1).all(1),
    )

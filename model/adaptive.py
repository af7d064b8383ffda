"""An embedded Runge–Kutta solver in which every image has its own time, step and acceptance.

Dormand & Prince 1980, order 5(4), seven stages, the last of which is the first of the next step
(FSAL). Step control as in Hairer, Nørsett & Wanner, "Solving ordinary differential equations I",
§II.4. No quantity is shared between rows, so an answer does not depend on what it was solved
with, and finished rows are not asked about again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from model.query import Operation

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    dtype=torch.float64,
)
_ERROR = torch.tensor(
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
    dtype=torch.float64,
)
_STAGES = 7
_ORDER = 5
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


Field: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Operation[Tensor]]
"""dy/dt as an operation of y ``(some, n)``, t ``(some,)``, which rows these are, and progress."""


Observer: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""Called after accepted steps: which rows ``(some,)``, t ``(some,)``, y, dy/dt there and the
step's local error, ``(some, n)`` each."""

ErrorNorm: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps (error (rows, n), size of the state (rows, n)) to (rows,); a step is accepted below 1."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """y ``(rows, n)`` float64; nfe ``(rows,)`` int64; converged ``(rows,)`` bool."""

    y: Tensor
    nfe: Tensor
    converged: Tensor


def relative_norm(tolerance: float) -> ErrorNorm:
    """Root mean square of error / (tolerance · (1 + |y|))."""

    def norm(error: Tensor, size: Tensor) -> Tensor:
        return (error / (tolerance * (1.0 + size))).square().mean(1).sqrt()

    return norm


class _Rows:
    """The rows still on their way: all tensors share their first dimension."""

    def __init__(self, y: Tensor, start: float, k: Tensor, step: Tensor) -> None:
        self.index = torch.arange(len(y))
        self.y = y
        self.t = torch.full((len(y),), start, dtype=torch.float64)
        self.k = k  # (rows, stages, n); stage 0 is dy/dt at (y, t)
        self.step = step
        self.rejected = torch.zeros(len(y), dtype=torch.bool)

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


def solve(
    field: Field,
    y: Tensor,
    start: float,
    end: float,
    norm: ErrorNorm,
    *,
    max_calls: int = 2000,
    observe: Observer | None = None,
) -> Operation[Solution]:
    """Integrate dy/dt = field from start to end, in either direction, row by row.

    y ``(rows, n)`` float64. A row that has used ``max_calls`` calls before the end stops where
    it is, with ``converged`` False; so does one whose field is no longer finite.
    """
    rows = len(y)
    result = Solution(
        y=y.clone(),
        nfe=torch.zeros(rows, dtype=torch.int64),
        converged=torch.zeros(rows, dtype=torch.bool),
    )
    if rows == 0:
        return result
    everyone = torch.arange(rows)
    slope = yield from field(y, torch.full((rows,), start, dtype=torch.float64), everyone, 0.0)
    k = torch.zeros(rows, _STAGES, y.shape[1], dtype=torch.float64)
    k[:, 0] = slope
    step = yield from _first_step(field, y, slope, start, end, norm)
    active = _Rows(y.clone(), start, k, step)
    result.nfe.fill_(2)

    while len(active.index):
        progress = float(((active.t - start) / (end - start)).min())
        # A step that would leave a sliver for the next one takes it along.
        remaining = (end - active.t).abs()
        last = active.step >= remaining
        length = torch.where(last, remaining, active.step)
        h = torch.sign(torch.tensor(end - start, dtype=torch.float64)) * length
        proposal = yield from _stages(field, active, h, progress)
        error = torch.einsum("s,rsn->rn", _ERROR, active.k) * h[:, None]
        size = torch.maximum(active.y.abs(), proposal.abs())
        ratio = norm(error, size)
        result.nfe[active.index] += _STAGES - 1

        accepted = ratio < 1.0
        finite = torch.isfinite(ratio)
        active.y = torch.where(accepted[:, None], proposal, active.y)
        active.t = torch.where(accepted, torch.where(last, end, active.t + h), active.t)
        active.k[:, 0] = torch.where(accepted[:, None], active.k[:, -1], active.k[:, 0])
        if observe is not None:
            k, t = active.k[accepted, 0], active.t[accepted]
            observe(active.index[accepted], t, active.y[accepted], k, error[accepted])
        factor = (_SAFETY * ratio.clamp_min(1e-10) ** (-1 / _ORDER)).clamp(_SHRINK, _GROW)
        factor = torch.where(~accepted | active.rejected, factor.clamp_max(1.0), factor)
        active.step = length * torch.where(finite, factor, _SHRINK)
        active.rejected = ~accepted

        done = accepted & last
        too_many = result.nfe[active.index] + _STAGES - 1 > max_calls
        stuck = ~(active.step >= 1e-12 * abs(end - start))  # also where the field is not finite
        leaving = done | too_many | stuck
        result.y[active.index[leaving]] = active.y[leaving]
        result.converged[active.index[done]] = True
        active.keep(~leaving)
    return result


def _stages(field: Field, active: _Rows, h: Tensor, progress: float) -> Operation[Tensor]:
    """Fill stages 1 … 6 of a step of length h ``(rows,)``; returns the fifth-order y."""
    point = active.y
    for stage in range(1, _STAGES):
        slope = torch.einsum("s,rsn->rn", _A[stage, :stage], active.k[:, :stage])
        point = active.y + h[:, None] * slope
        t = active.t + _C[stage] * h
        active.k[:, stage] = yield from field(point, t, active.index, progress)
    return point


def _first_step(
    field: Field, y: Tensor, slope: Tensor, start: float, end: float, norm: ErrorNorm
) -> Operation[Tensor]:
    """The length of the first step, ``(rows,)``: Hairer et al., §II.4, "starting step size"."""
    size = y.abs()
    span = abs(end - start)
    direction = 1.0 if end > start else -1.0
    d0, d1 = norm(y, size), norm(slope, size)
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(tiny, 1e-6, 0.01 * d0 / d1.clamp_min(1e-300)).clamp_max(span)
    t1 = start + direction * h0
    moved = y + (direction * h0)[:, None] * slope
    slope1 = yield from field(moved, t1, torch.arange(len(y)), 0.0)
    d2 = norm(slope1 - slope, size) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(
        steepest <= 1e-15,
        (1e-3 * h0).clamp_min(1e-6),
        (0.01 / steepest.clamp_min(1e-300)) ** (1 / _ORDER),
    )
    return torch.minimum(100.0 * h0, h1).clamp_max(span)

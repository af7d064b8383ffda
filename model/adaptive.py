"""An embedded Runge–Kutta solver in which every row has its own time, step and acceptance.

Dormand & Prince 1980, order 5(4), seven stages, the last of which is the first of the next step
(FSAL). Step control as in Hairer, Nørsett & Wanner, "Solving ordinary differential equations I",
§II.4. No quantity is shared between rows, so an answer does not depend on what it was solved with.

Asking for dy/dt is left to the caller. A row goes through phases, one evaluation each:

    0        the slope at the start
    1        a probe of the first step's length
    2 … 7    stages 1 … 6 of a step; after the last it is accepted or not, and 2 comes next

Arithmetic is elementwise or sums over fixed lengths, whose rounding is the same however many rows
there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.slots import Slots

STAGES = 7
FIRST_STAGE, LAST_STAGE = 2, 7
"""Phases of a step's first and last evaluation."""

_ORDER = 5
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_LAST = 1.2
"""A step that comes this near to the end goes all the way: it is judged like any other, and a
sliver of a step less is six evaluations less (benchmarks/RESULTS.md)."""

# By phase: the point y + h Σ a_i k_i, at t + c h, and the stage that its slope becomes.
_C = torch.tensor([0.0, 1.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0], dtype=torch.float64)
_A = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ],
    dtype=torch.float64,
)
_STAGE = torch.tensor([0, 1, 1, 2, 3, 4, 5, 6])
_ERROR = torch.tensor(
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
    dtype=torch.float64,
)


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent for base ≥ 0, the same to the bit wherever an element stands.

    torch computes the bulk of a tensor by vector instructions and what is left over one by one. Of
    pow, sinh and sigmoid in float64, unlike exp, log, expm1 and tanh, the two differ in the last
    bit: a row's answer would depend on how many others there are.
    """
    return (exponent * base.log()).exp()


ErrorNorm = Callable[[Tensor, Tensor], Tensor]
"""Maps (error (rows, n), size of the state (rows, n)) to (rows,); a step is accepted below 1."""


def relative_norm(tolerance: Tensor) -> ErrorNorm:
    """Root mean square of error / (tolerance · (1 + |y|)); tolerance ``(rows,)``."""

    def norm(error: Tensor, size: Tensor) -> Tensor:
        return (error / (tolerance[:, None] * (1.0 + size))).square().mean(1).sqrt()

    return norm


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What the last evaluation of a step came to, a row each.

    leaving: it has arrived, or must stop. accepted, with error ``(rows, n)`` the local error of
    the step, defect ``(rows, n)`` that of the trapezoidal rule, and the slope ``(rows, n)`` at its
    end.
    """

    leaving: Tensor
    accepted: Tensor
    error: Tensor
    defect: Tensor
    slope: Tensor


class AdaptiveRows:
    """Rows y ``(n,)`` float64 on their way from start to end, in either direction.

    A row that has used up its calls before the end stops where it is, not converged; so does one
    whose slope is no longer finite.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.slots = Slots(device)
        for name, shape in (("y", (n,)), ("k", (STAGES, n))):
            self.slots.add(name, *shape)
        for name in ("t", "start", "end", "step", "h", "max_calls"):
            self.slots.add(name)
        for name in ("converged", "rejected", "last"):
            self.slots.add(name, dtype=torch.bool)
        self.slots.add("nfe", dtype=torch.int64)
        self._c, self._a, self._error = (x.to(device) for x in (_C, _A, _ERROR))
        self._stage = _STAGE.to(device)

    def admit(self, y: Tensor, start: float, end: float, max_calls: int) -> Tensor:
        """Places of new rows at y ``(rows, n)``, in phase 0."""
        at = self.slots.take(len(y))
        self.slots["y"][at] = y
        for name, value in (("t", start), ("start", start), ("end", end), ("max_calls", max_calls)):
            self.slots[name][at] = value
        return at

    def ask(self, at: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Where the slope is wanted: points ``(rows, n)`` and times ``(rows,)``."""
        h = self.slots["h"][at]
        slope = (self._a[phase][:, :, None] * self.slots["k"][at]).sum(1)
        return self.slots["y"][at] + h[:, None] * slope, self.slots["t"][at] + self._c[phase] * h

    def tell(self, at: Tensor, phase: Tensor, slope: Tensor) -> None:
        """The slopes ``(rows, n)`` at those points."""
        self.slots["k"][at, self._stage[phase]] = slope
        self.slots["nfe"][at] += 1

    def try_first_step(self, at: Tensor, norm: ErrorNorm) -> None:
        """After phase 0: a short step, to see how the slope changes (Hairer et al., §II.4)."""
        y, k = self.slots["y"][at], self.slots["k"][at, 0]
        d0, d1 = norm(y, y.abs()), norm(k, y.abs())
        span = self.slots["end"][at] - self.slots["start"][at]
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        length = torch.where(tiny, 1e-6, 0.01 * d0 / d1.clamp_min(1e-300))
        self.slots["h"][at] = torch.sign(span) * torch.minimum(length, span.abs())

    def begin(self, at: Tensor, norm: ErrorNorm) -> None:
        """After phase 1: the first step, of a length that suits the slope's change."""
        y, k, tried = self.slots["y"][at], self.slots["k"][at], self.slots["h"][at].abs()
        d1, d2 = norm(k[:, 0], y.abs()), norm(k[:, 1] - k[:, 0], y.abs()) / tried
        steepest = torch.maximum(d1, d2)
        length = torch.where(
            steepest <= 1e-15,
            (1e-3 * tried).clamp_min(1e-6),
            power(0.01 / steepest.clamp_min(1e-300), 1 / _ORDER),
        )
        self.slots["step"][at] = torch.minimum(100.0 * tried, length)
        self._next_step(at)

    def finish_step(self, at: Tensor, norm: ErrorNorm) -> Stepped:
        """After the last stage: accept or reject, and begin the next step of those that stay."""
        s = self.slots
        y, k, h, last = s["y"][at], s["k"][at], s["h"][at], s["last"][at]
        proposal = y + h[:, None] * (self._a[LAST_STAGE][:, None] * k).sum(1)
        error = (self._error[:, None] * k).sum(1) * h[:, None]
        ratio = norm(error, torch.maximum(y.abs(), proposal.abs()))
        accepted = ratio < 1.0
        s["y"][at] = torch.where(accepted[:, None], proposal, y)
        s["t"][at] = torch.where(
            accepted, torch.where(last, s["end"][at], s["t"][at] + h), s["t"][at]
        )
        slope = torch.where(accepted[:, None], k[:, -1], k[:, 0])
        s["k"][at, 0] = slope
        factor = (_SAFETY * power(ratio.clamp_min(1e-10), -1 / _ORDER)).clamp(_SHRINK, _GROW)
        factor = torch.where(~accepted | s["rejected"][at], factor.clamp_max(1.0), factor)
        step = h.abs() * torch.where(torch.isfinite(ratio), factor, _SHRINK)
        s["step"][at], s["rejected"][at] = step, ~accepted
        s["converged"][at] = done = accepted & last
        too_many = s["nfe"][at] + STAGES - 1 > s["max_calls"][at]
        # Written so that a step that is not a number is stuck as well.
        stuck = ~(step >= 1e-12 * (s["end"][at] - s["start"][at]).abs())
        self._next_step(at)
        return Stepped(
            leaving=done | too_many | stuck,
            accepted=accepted,
            error=error,
            defect=proposal - y - 0.5 * h[:, None] * (k[:, 0] + k[:, -1]),
            slope=slope,
        )

    def progress(self, at: Tensor) -> Tensor:
        """How far each row has come, 0 … 1."""
        start = self.slots["start"][at]
        return (self.slots["t"][at] - start) / (self.slots["end"][at] - start)

    def _next_step(self, at: Tensor) -> None:
        s = self.slots
        remaining = s["end"][at] - s["t"][at]
        # Not again after it was rejected: the same step would be tried for ever.
        reach = torch.where(s["rejected"][at], 1.0, _LAST)
        s["last"][at] = last = reach * s["step"][at] >= remaining.abs()
        direction = torch.sign(s["end"][at] - s["start"][at])
        s["h"][at] = torch.where(last, remaining, direction * s["step"][at])
        s["k"][at, 1:] = 0.0  # a stage that is no number must not outlive its step

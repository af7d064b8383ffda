"""A sampler on a fixed grid is a table.

Such a sampler is linear in its state x, its history h, the network's output ε at the point y that
it just asked about, and fresh noise z, with coefficients known before the first step. A `Plan`
holds, per network call, the time to ask at and the float64 matrix that maps the registers
``[x, h, y, ε, z]`` to ``[x', h', y']``. At the start y = x; the sample is x after the last call.
Registers are in the process's own space (not standardised).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import Stream, normal
from model.prediction import eps_from_x0, x0_from_eps
from model.process import Process
from model.query import Answer, Condition, Operation, Query

X, H, Y, EPS, Z = range(5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """times (calls,), table (calls, 3, 5), both float64; start and end are times.

    x begins at the noise level of ``start`` and ends at that of ``end``, None for the clean image.
    """

    process: Process
    times: Tensor
    table: Tensor
    start: float
    end: float | None

    def __post_init__(self) -> None:
        if self.table.shape != (len(self.times), 3, 5):
            raise ValueError(
                f"a table is (calls, 3, 5) with one matrix a time: {len(self.times)} times, "
                f"table {tuple(self.table.shape)}"
            )

    @property
    def calls(self) -> int:
        """Network calls."""
        return len(self.times)

    @property
    def noisy(self) -> bool:
        """Whether any step draws noise."""
        return bool(self.table[:, :, Z].any())


Terms = dict[int, float]
"""A linear combination of registers: {register: coefficient}."""


class PlanBuilder:
    """Writes a table one network call at a time; registers that are not named keep their value."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._times: list[float] = []
        self._matrices: list[Tensor] = []

    def call(self, t: float, *, x: Terms, h: Terms | None = None, y: Terms | None = None) -> None:
        """Ask at time t; each new register is a sum of old ones.

        Without ``h`` the history stays; without ``y`` the next point asked about is the new x.
        """
        matrix = torch.zeros(3, 5, dtype=torch.float64)
        for row, terms in enumerate((x, {H: 1.0} if h is None else h, x if y is None else y)):
            for register, coefficient in terms.items():
                matrix[row, register] = coefficient
        self._times.append(t)
        self._matrices.append(matrix)

    def build(self, *, start: float | None = None, end: float | None) -> Plan:
        """The finished Plan, from ``start`` (the first time if left out) to ``end``."""
        times = torch.tensor(self._times, dtype=torch.float64)
        return Plan(
            process=self.process,
            times=times,
            table=torch.stack(self._matrices),
            start=self._times[0] if start is None else start,
            end=end,
        )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Clips x̂0 to [low, high] before every update, as Ho et al. 2020 do for images."""

    low: float
    high: float

    def __call__(self, u: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """The ε that belongs to the clipped x̂0."""
        x0 = x0_from_eps(u, eps, log_snr).clamp(self.low, self.high)
        return eps_from_x0(u, x0, log_snr)


@dataclass(frozen=True, kw_only=True)
class Final:
    """Registers after the last call, ``(rows, C, H, W)`` float64: the sample and the history."""

    x: Tensor
    h: Tensor


def replay(
    plan: Plan,
    x: Tensor,
    seeds: Tensor,
    condition: Condition,
    *,
    h: Tensor | None = None,
    clip: Clip | None = None,
    reproducible: bool = False,
) -> Operation[Final]:
    """Follow a Plan from x ``(rows, C, H, W)`` float64 at its start.

    seeds ``(rows,)`` int64 key the noise of call i as (seed, STEP, i). h is the history to start
    with, zero if left out.
    """
    noisy = plan.noisy
    image = torch.arange(len(x))
    scale, log_snr = plan.process.scale(plan.times), plan.process.log_snr(plan.times)
    registers = torch.zeros(5, *x.shape, dtype=torch.float64)  # x, h, y, eps, z
    registers[X], registers[Y] = x, x
    if h is not None:
        registers[H] = h
    for i in range(plan.calls):
        u, level = registers[Y] / scale[i], log_snr[i].expand(len(x))
        answer: Answer = yield Query(
            u=u,
            log_snr=level,
            condition=condition,
            image=image,
            reproducible=reproducible,
            progress=i / plan.calls,
        )
        registers[EPS] = answer.eps if clip is None else clip(u, answer.eps, level)
        if noisy:
            registers[Z] = normal(seeds, Stream.STEP, i, tuple(x.shape[1:]))
        registers[:3] = torch.tensordot(plan.table[i], registers, dims=1)
    return Final(x=registers[X].clone(), h=registers[H].clone())


def from_prior(plan: Plan, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """sqrt(α² + σ²) z at the Plan's start, z ~ N(0, I) keyed by (seed, PRIOR): (rows, *shape)."""
    scale = plan.process.scale(torch.tensor(plan.start, dtype=torch.float64))
    return scale * normal(seeds, Stream.PRIOR, 0, shape)

"""A sampler on a fixed grid is a table.

Such a sampler is linear in its state x, its history h, the network's output ε at the point y that
it just asked about, and fresh noise z, with coefficients known before the first step. A `Plan`
holds, per network call, the time to ask at and the float64 matrix that maps the registers
``[x, h, y, ε, z]`` to ``[x', h', y']``. At the start x = y and h = 0; the sample is x after the
last call. Registers are in the process's own space (not standardised).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import Stream, normal
from model.process import Process
from model.query import Answer, Condition, Operation, Query

X, H, Y, EPS, Z = range(5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """times (calls,), table (calls, 3, 5), both float64; process gives the scale at each time."""

    process: Process
    times: Tensor
    table: Tensor

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


class PlanBuilder:
    """Writes a table one network call at a time; registers that are not named keep their value."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._times: list[float] = []
        self._matrices: list[Tensor] = []

    def call(
        self,
        t: float,
        *,
        x: dict[int, float],
        h: dict[int, float] | None = None,
        y: dict[int, float] | None = None,
    ) -> None:
        """Ask at time t; each new register is a sum of old ones, {register: coefficient}.

        Without ``h`` the history stays; without ``y`` the next point asked about is the new x.
        """
        matrix = torch.zeros(3, 5, dtype=torch.float64)
        for row, terms in enumerate((x, {H: 1.0} if h is None else h, x if y is None else y)):
            for register, coefficient in terms.items():
                matrix[row, register] = coefficient
        self._times.append(t)
        self._matrices.append(matrix)

    def build(self) -> Plan:
        """The finished Plan."""
        times = torch.tensor(self._times, dtype=torch.float64)
        return Plan(process=self.process, times=times, table=torch.stack(self._matrices))


def replay(
    plan: Plan, x: Tensor, seeds: Tensor, condition: Condition, *, reproducible: bool = False
) -> Operation[Tensor]:
    """Follow a Plan from x ``(rows, C, H, W)`` float64; returns the final x, same shape.

    seeds ``(rows,)`` int64 key the noise of call i as (seed, STEP, i).
    """
    noisy = plan.noisy
    image = torch.arange(len(x))
    scale, log_snr = plan.process.scale(plan.times), plan.process.log_snr(plan.times)
    registers = torch.zeros(5, *x.shape, dtype=torch.float64)  # x, h, y, eps, z
    registers[X], registers[Y] = x, x
    for i in range(plan.calls):
        level = log_snr[i].expand(len(x))
        query = Query(
            u=registers[Y] / scale[i],
            log_snr=level,
            condition=condition,
            image=image,
            reproducible=reproducible,
            progress=i / plan.calls,
        )
        answer: Answer = yield query
        registers[EPS] = answer.eps
        if noisy:
            registers[Z] = normal(seeds, Stream.STEP, i, tuple(x.shape[1:]))
        registers[:3] = torch.tensordot(plan.table[i], registers, dims=1)
    return registers[X].clone()


def from_prior(process: Process, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x_T = sqrt(α_T² + σ_T²) z with z ~ N(0, I) keyed by (seed, PRIOR): ``(rows, *shape)``."""
    scale = process.scale(torch.tensor(process.t_max, dtype=torch.float64))
    return scale * normal(seeds, Stream.PRIOR, 0, shape)

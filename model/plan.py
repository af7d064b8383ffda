"""A sampler on a fixed grid is a table.

Such a sampler is linear in its state x, its history h, the network's output ε at the point y that
it just asked about, and fresh noise z, with coefficients known before the first step. A `Plan`
holds, per network call, the time to ask at and the float64 matrix that maps the registers
``[x, h, y, ε, z]`` to ``[x', h', y']``. At the start y = x; the sample is x after the last call.
Registers are in the process's own space (not standardised).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.noise import Stream, normal
from model.prediction import angle
from model.process import Process

X, H, Y, EPS, Z = range(5)

TABLE, SCALE, LOG_SNR, COS, SIN = slice(0, 15), 15, 16, 17, 18
"""The columns of a script."""


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

    @cached_property
    def script(self) -> Tensor:
        """A line a call, ``(calls, 19)``: its matrix, sqrt(α² + σ²), and the level to ask at.

        That is its log-SNR, and cos φ and sin φ of `model.prediction`.
        """
        scale, log_snr = self.process.scale(self.times), self.process.log_snr(self.times)
        level = torch.stack((scale, log_snr, *angle(log_snr)), dim=1)
        return torch.cat((self.table.flatten(1), level), dim=1)

    @cached_property
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
        self._matrices: list[list[list[float]]] = []

    def call(self, t: float, *, x: Terms, h: Terms | None = None, y: Terms | None = None) -> None:
        """Ask at time t; each new register is a sum of old ones.

        Without ``h`` the history stays; without ``y`` the next point asked about is the new x.
        """
        rows = (x, {H: 1.0} if h is None else h, x if y is None else y)
        self._times.append(t)
        self._matrices.append(
            [[terms.get(register, 0.0) for register in range(5)] for terms in rows]
        )

    def build(self, *, start: float | None = None, end: float | None) -> Plan:
        """The finished Plan, from ``start`` (the first time if left out) to ``end``."""
        times = torch.tensor(self._times, dtype=torch.float64)
        return Plan(
            process=self.process,
            times=times,
            table=torch.tensor(self._matrices, dtype=torch.float64),
            start=self._times[0] if start is None else start,
            end=end,
        )


def from_prior(plan: Plan, seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """sqrt(α² + σ²) z at the Plan's start, z ~ N(0, I) keyed by (seed, PRIOR): (rows, *shape)."""
    scale = plan.process.scale(torch.tensor(plan.start, dtype=torch.float64))
    return scale * normal(seeds, Stream.PRIOR, 0, shape)

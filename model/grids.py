"""Time grids: the times t_N > … > t_1 that a sampler visits, noise first.

A grid is a function ``(process, steps) -> (steps,) float64 tensor``, from t_max to t_min. The
selections of a discrete schedule (`trailing`, `leading`, `linspace`) keep to the T times that a
DDPM was trained at; see Lin et al. 2024, table 2, for how they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.process import Process

DISCRETE_STEPS = 1000
"""T of the discrete schedule that the selections choose from, where the process has none."""


def uniform(process: Process, steps: int) -> Tensor:
    """Equal steps in t, from t_max to t_min."""
    return torch.linspace(process.t_max, process.t_min, steps, dtype=torch.float64)


def quadratic(process: Process, steps: int) -> Tensor:
    """Equal steps in √t (Song, Meng & Ermon 2021, appendix D.2): denser near the data."""
    roots = torch.linspace(process.t_max**0.5, process.t_min**0.5, steps, dtype=torch.float64)
    return _with_exact_ends(process, roots.square())


def log_snr(process: Process, steps: int) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022, DPM-Solver, §4.1), from t_max to t_min."""
    first, last = _ends(process)
    levels = torch.linspace(first, last, steps, dtype=torch.float64)
    return _with_exact_ends(process, process.time(levels))


def karras(process: Process, steps: int, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (σ/α)^(1/ρ), ρ = 7: Karras et al. 2022, eq. 5."""
    first, last = _ends(process)
    ratio = torch.tensor([first, last], dtype=torch.float64).mul(-0.5).exp() ** (1.0 / rho)
    levels = torch.linspace(float(ratio[0]), float(ratio[1]), steps, dtype=torch.float64)
    return _with_exact_ends(process, process.time(-2.0 * rho * levels.log()))


def trailing(process: Process, steps: int) -> Tensor:
    """Every (T/steps)-th of T discrete times, counted back from the last one."""
    return _discrete(process, torch.arange(steps, 0, -1, dtype=torch.float64) / steps, steps)


def leading(process: Process, steps: int) -> Tensor:
    """Every (T/steps)-th of T discrete times, counted from the first one: it skips the noisiest."""
    stride = DISCRETE_STEPS // steps
    first = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + 1.0
    return _discrete(process, first / DISCRETE_STEPS, steps)


def linspace(process: Process, steps: int) -> Tensor:
    """Discrete times spread evenly from the last to the first, both included."""
    first = torch.linspace(DISCRETE_STEPS - 1, 0, steps, dtype=torch.float64) + 1.0
    return _discrete(process, first / DISCRETE_STEPS, steps)


def explicit(process: Process, times: Sequence[float]) -> Tensor:
    """The given times, noise first; ValueError if they leave the process's range or order."""
    grid = torch.tensor(list(times), dtype=torch.float64)
    inside = (grid >= process.t_min) & (grid <= process.t_max)
    if len(grid) < 2 or not inside.all() or not (grid.diff() < 0).all():
        raise ValueError(
            f"times must be at least two, falling, within [{process.t_min}, {process.t_max}]; "
            f"got {list(times)}"
        )
    return grid


def _discrete(process: Process, fraction: Tensor, steps: int) -> Tensor:
    """Round to the nearest of the T discrete times i/T."""
    if not 1 <= steps <= DISCRETE_STEPS:
        raise ValueError(f"a discrete schedule of {DISCRETE_STEPS} has no {steps} steps to select")
    times = (fraction * DISCRETE_STEPS).round() / DISCRETE_STEPS  # distinct, but for the clamp
    kept = sorted(set(times.clamp(process.t_min, process.t_max).tolist()), reverse=True)
    return torch.tensor(kept, dtype=torch.float64)


def _ends(process: Process) -> tuple[float, float]:
    """Log-SNR at t_max and at t_min."""
    ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


def _with_exact_ends(process: Process, times: Tensor) -> Tensor:
    times[-1], times[0] = process.t_min, process.t_max  # a single step is at t_max
    return times


WHOLE_GRIDS: dict[str, Callable[[Process, int], Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}
"""Those that begin at t_max and end at t_min, as encoding and decoding must."""

GRIDS: dict[str, Callable[[Process, int], Tensor]] = {
    **WHOLE_GRIDS,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
}

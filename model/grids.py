"""Time grids: the times t_N > … > t_1 that a sampler visits, noise first.

A grid is a function ``(process, steps) -> (steps,) float64 tensor``, from t_max to t_min.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.process import Process


def uniform(process: Process, steps: int) -> Tensor:
    """Equal steps in t, from t_max to t_min."""
    return torch.linspace(process.t_max, process.t_min, steps, dtype=torch.float64)


def log_snr(process: Process, steps: int) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022, DPM-Solver, §4.1), from t_max to t_min."""
    ends = process.log_snr(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    times = process.time(torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64))
    times[0], times[-1] = process.t_max, process.t_min
    return times


GRIDS: dict[str, Callable[[Process, int], Tensor]] = {
    "uniform": uniform,
    "log_snr": log_snr,
}

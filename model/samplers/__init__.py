"""Samplers: each a function ``(process, times, **options) -> Plan``, one short file each.

``times`` (steps,) runs from t_max to t_min. `ddpm` and `ddim` go on from t_min to the clean image
(α = 1, σ = 0); the solvers of the probability-flow ODE stop at t_min, where they can be inverted,
and run in either direction.
"""

from __future__ import annotations

from collections.abc import Callable

from model.plan import Plan
from model.samplers.ddim import ddim
from model.samplers.ddpm import ddpm
from model.samplers.euler import euler
from model.samplers.heun import heun

SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
}

ODE_SOLVERS: dict[str, Callable[..., Plan]] = {
    "euler": euler,
    "heun": heun,
}

__all__ = ["ODE_SOLVERS", "SAMPLERS", "ddim", "ddpm", "euler", "heun"]

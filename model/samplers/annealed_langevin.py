"""Annealed Langevin dynamics: Song & Ermon 2019, algorithm 1.

Run in x/α, whose noise level is ρ = σ/α, so that it serves any process: at each level

    η = δ ρ²/ρ_min²,   x/α ← x/α + η score + √(2η) z

and, which the paper leaves out, a denoising step at the end (Jolicoeur-Martineau et al. 2021).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from model.plan import Plan, PlanBuilder
from model.process import Process
from model.samplers.langevin import langevin_step
from model.samplers.levels import levels, scaled


def annealed_langevin(
    process: Process, times: Tensor, *, delta: float = 0.1, steps_per_level: int = 1
) -> Plan:
    """``steps_per_level`` steps at each time, then x̂0; δ is given in units of ρ_min²."""
    plan = PlanBuilder(process)
    grid = levels(process, times)
    for now, after in pairwise([*grid, grid[-1]]):
        step = langevin_step(now, delta * now.sigma**2)  # α² η: in x's own units
        for _ in range(steps_per_level - 1):
            plan.call(now.t, x=step)
        plan.call(now.t, x=scaled(step, after.alpha / now.alpha))
    plan.call(grid[-1].t, x=grid[-1].x0)
    return plan.build(end=None)

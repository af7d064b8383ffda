"""Euler's method for the probability-flow ODE in its simplest coordinates.

In x/α over ρ = σ/α the ODE is d(x/α)/dρ = ε (Song, Meng & Ermon 2021, eq. 14; Karras et al. 2022,
eq. 1 with their s = α). One Euler step is one deterministic DDIM step. Order 1.
"""

from __future__ import annotations

from torch import Tensor

from model.plan import EPS, Plan, PlanBuilder, X
from model.process import Process
from model.samplers.levels import steps


def euler(process: Process, times: Tensor) -> Plan:
    """Between the first and the last time, in either direction; one call a step."""
    plan = PlanBuilder(process)
    for now, after in steps(process, times):
        step = after.ratio - now.ratio
        plan.call(now.t, x={X: after.alpha / now.alpha, EPS: after.alpha * step})
    return plan.build(end=float(times[-1]))

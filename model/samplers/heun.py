"""Heun's method for the probability-flow ODE d(x/α)/dρ = ε, ρ = σ/α.

Karras et al. 2022, algorithm 1: an Euler step, then the mean of the slopes at its two ends.
Order 2.
"""

from __future__ import annotations

from torch import Tensor

from model.plan import EPS, H, Plan, PlanBuilder, X
from model.process import Process
from model.samplers.levels import steps


def heun(process: Process, times: Tensor) -> Plan:
    """Between the first and the last time, in either direction; two calls a step."""
    plan = PlanBuilder(process)
    for now, after in steps(process, times):
        ratio, step = after.alpha / now.alpha, after.alpha * (after.ratio - now.ratio)
        plan.call(now.t, x={X: 1.0}, h={EPS: 1.0}, y={X: ratio, EPS: step})
        plan.call(after.t, x={X: ratio, H: 0.5 * step, EPS: 0.5 * step})
    return plan.build(end=float(times[-1]))

"""The classical Runge–Kutta method for the probability-flow ODE d(x/α)/dρ = ε, ρ = σ/α.

Hairer, Nørsett & Wanner, "Solving ordinary differential equations I", §II.1. Order 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.plan import EPS, H, Plan, PlanBuilder, X
from model.process import Process
from model.samplers.levels import levels, steps


def rk4(process: Process, times: Tensor) -> Plan:
    """Between the first and the last time, in either direction; four calls a step."""
    rho = process.sigma(times) / process.alpha(times)
    halfway = 0.5 * (rho[:-1] + rho[1:])
    middles = levels(process, process.time(-2.0 * torch.log(halfway)))
    plan = PlanBuilder(process)
    for (now, after), middle in zip(steps(process, times), middles, strict=True):
        step = after.ratio - now.ratio
        half = {X: middle.alpha / now.alpha, EPS: 0.5 * middle.alpha * step}
        whole = {X: after.alpha / now.alpha, EPS: after.alpha * step}
        sixth = after.alpha * step / 6.0
        # h gathers k1 + 2 k2 + 2 k3 while x waits at the start of the step.
        plan.call(now.t, x={X: 1.0}, h={EPS: 1.0}, y=half)
        plan.call(middle.t, x={X: 1.0}, h={H: 1.0, EPS: 2.0}, y=half)
        plan.call(middle.t, x={X: 1.0}, h={H: 1.0, EPS: 2.0}, y=whole)
        plan.call(after.t, x={X: after.alpha / now.alpha, H: sixth, EPS: sixth})
    return plan.build(end=float(times[-1]))

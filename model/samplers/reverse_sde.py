"""The reverse SDE by Euler–Maruyama: Song et al. 2021, eq. 6 (Anderson 1982).

    dx = (f x − g² score) dt + g dw̄,   score = −ε/σ

from t to s < t, with Δ = s − t < 0:   x_s = x + (f x + g² ε/σ) Δ + g √(−Δ) z. Order 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from model.plan import EPS, Plan, PlanBuilder, Terms, X, Z
from model.process import Process
from model.samplers.levels import Level, levels, steps


def reverse_sde(process: Process, times: Tensor) -> Plan:
    """Down to t_min by Euler–Maruyama, then a denoising step to x̂0; one call a time."""
    plan = PlanBuilder(process)
    for now, _, x in euler_maruyama(process, times):
        plan.call(now.t, x=x)
    last = levels(process, times[-1:])[0]
    plan.call(last.t, x=last.x0)
    return plan.build(end=None)


def euler_maruyama(process: Process, times: Tensor) -> Iterator[tuple[Level, Level, Terms]]:
    """Each (now, next) along the grid with the new x of the step between them."""
    drift, diffusion = process.drift(times).tolist(), process.diffusion_squared(times).tolist()
    for (now, after), f, g2 in zip(steps(process, times), drift, diffusion, strict=False):
        step = after.t - now.t
        yield now, after, {X: 1.0 + f * step, EPS: g2 / now.sigma * step, Z: math.sqrt(-g2 * step)}

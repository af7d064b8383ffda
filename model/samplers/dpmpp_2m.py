"""DPM-Solver++(2M): Lu et al. 2022b, "DPM-Solver++", algorithm 2.

In their half log-SNR λ = log(α/σ), with h_i = λ_i − λ_{i−1} and r = h_{i−1}/h_i:

    D   = (1 + 1/(2r)) x̂0(t_{i−1}) − 1/(2r) x̂0(t_{i−2})
    x_i = σ_i/σ_{i−1} x_{i−1} − α_i (e^{−h_i} − 1) D

The first step takes D = x̂0. One call a step, order 2.
"""

from __future__ import annotations

import math

from torch import Tensor

from model.plan import EPS, H, Plan, PlanBuilder, X
from model.process import Process
from model.samplers.levels import steps


def dpmpp_2m(process: Process, times: Tensor) -> Plan:
    """Between the first and the last time, in either direction; one call a step."""
    plan = PlanBuilder(process)
    last_length: float | None = None
    for now, after in steps(process, times):
        length = math.log(now.ratio / after.ratio)
        older = 0.0 if last_length is None else 0.5 * length / last_length  # 1/(2r)
        weight = -after.alpha * math.expm1(-length)
        x0 = now.x0
        newer = weight * (1.0 + older)
        x = {X: after.sigma / now.sigma + newer * x0[X], EPS: newer * x0[EPS], H: -weight * older}
        plan.call(now.t, x=x, h=x0)
        last_length = length
    return plan.build(end=float(times[-1]))

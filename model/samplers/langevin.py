"""Langevin dynamics at one noise level.

Unadjusted Langevin with step η (Welling & Teh 2011; the noise is √(2η) z, which some write as
√ε z with η = ε/2):

    x ← x + η score(x) + √(2η) z,   score = −ε/σ

Its stationary law is p_t up to a bias of order η: a Gaussian of variance v ends at
v/(1 − η/(2v)).
"""

from __future__ import annotations

import math

from torch import Tensor

from model.plan import EPS, Plan, PlanBuilder, Terms, X, Z
from model.process import Process
from model.samplers.levels import Level, levels


def langevin(process: Process, times: Tensor, *, step: float = 0.1) -> Plan:
    """As many steps as there are times, all at the noise level of the *last* time.

    η = step · σ². It starts from noise of p_t's scale, samples p_t, and stays there: with one
    step size there is no way down to the data.
    """
    level = levels(process, times[-1:])[0]
    plan = PlanBuilder(process)
    for _ in times:
        plan.call(level.t, x=langevin_step(level, step * level.sigma**2))
    return plan.build(end=level.t)


def langevin_step(level: Level, eta: float) -> Terms:
    """The new x of one step of size η (in units of x squared) at this noise level."""
    return {X: 1.0, EPS: -eta / level.sigma, Z: math.sqrt(2.0 * eta)}

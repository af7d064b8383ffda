"""Convergence orders on Gaussian data, exactly: no sampling, no tolerance for luck."""

import math

import numpy as np
import pytest

from model import grids
from model.process import VPLinear
from model.samplers import ODE_SOLVERS, SAMPLERS
from tests.laws.gaussian import final_variance, marginal_variance

V = 0.25
ORDERS = {"ddpm": 1, "ddim": 1, "euler": 1, "heun": 2}
STEPS = (160, 320, 640, 1280)


def slope(errors: list[float]) -> float:
    return -np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0]


def test_every_sampler_has_a_stated_order() -> None:
    assert set(ORDERS) == set(SAMPLERS) | set(ODE_SOLVERS)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampler_to_the_clean_image_converges_at_its_order(name: str) -> None:
    # t_min is small enough that the last step, t_min → 0, costs far less than the grid does.
    process = VPLinear(t_min=1e-6)
    start = marginal_variance(process, process.t_max, V)
    errors = [
        math.sqrt(final_variance(SAMPLERS[name](process, grids.log_snr(process, n)), V, start))
        - math.sqrt(V)
        for n in STEPS
    ]
    assert slope(errors) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", sorted(ODE_SOLVERS))
def test_ode_solver_converges_at_its_order_in_both_directions(name: str, direction: str) -> None:
    process = VPLinear(t_min=1e-3)
    errors = []
    for n in STEPS:
        times = grids.log_snr(process, n + 1)
        if direction == "encode":
            times = times.flip(0)
        plan = ODE_SOLVERS[name](process, times)
        start = marginal_variance(process, float(times[0]), V)
        end = marginal_variance(process, float(times[-1]), V)
        errors.append(math.sqrt(final_variance(plan, V, start)) - math.sqrt(end))
    assert slope(errors) == pytest.approx(ORDERS[name], abs=0.15)


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    process = VPLinear(t_min=1e-3)
    times = grids.uniform(process, 50)
    ddim = SAMPLERS["ddim"](process, times, eta=1.0)
    assert np.allclose(ddim.table, SAMPLERS["ddpm"](process, times).table, rtol=1e-9, atol=1e-12)

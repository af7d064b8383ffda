"""Convergence orders on Gaussian data, exactly: no sampling, no tolerance for luck."""

import math

import numpy as np
import pytest
import torch

from model import grids
from model.process import PROCESSES, VPLinear
from model.samplers import ODE_SOLVERS, SAMPLERS, langevin, predictor_corrector
from tests.laws.gaussian import final_variance, marginal_variance
from tests.laws.processes import make

V = 0.25
STEPS = (160, 320, 640, 1280)
SAMPLER_ORDERS = {"ddpm": 1, "ddim": 1, "reverse_sde": 1}
NO_ORDER = {
    "langevin": "stays at one noise level",
    "annealed_langevin": "does not converge with more levels at a fixed δ",
    "predictor_corrector": "keeps the corrector's bias at a fixed r",
}
ODE_ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "rk4": 4, "reversible": 2}


def slope(errors: list[float]) -> float:
    return -float(np.polyfit(np.log(STEPS), np.log(np.abs(errors)), 1)[0])


def test_every_sampler_has_a_stated_order_or_a_reason_for_none() -> None:
    assert set(SAMPLER_ORDERS) | set(NO_ORDER) == set(SAMPLERS)
    assert set(ODE_ORDERS) == set(ODE_SOLVERS)


@pytest.mark.parametrize("name", sorted(SAMPLER_ORDERS))
def test_sampler_to_the_clean_image_converges_at_its_order(name: str) -> None:
    # t_min is small enough that the last step, t_min → 0, costs far less than the grid does.
    process = VPLinear(t_min=1e-6)
    start = marginal_variance(process, process.t_max, V)
    errors = [
        math.sqrt(final_variance(SAMPLERS[name](process, grids.log_snr(process, n)), V, start))
        - math.sqrt(V)
        for n in STEPS
    ]
    assert slope(errors) == pytest.approx(SAMPLER_ORDERS[name], abs=0.15)


# The reversible pair decodes what it encoded: it is no solver of its own in that direction.
BOTH_WAYS = [
    (name, direction)
    for name in sorted(ODE_SOLVERS)
    for direction in ("encode", "decode")
    if (name, direction) != ("reversible", "decode")
]


@pytest.mark.parametrize(("name", "direction"), BOTH_WAYS)
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
        found = final_variance(plan, V, start, paired=name == "reversible")
        errors.append(math.sqrt(found) - math.sqrt(end))
    assert slope(errors) == pytest.approx(ODE_ORDERS[name], abs=0.15)


@pytest.mark.parametrize("t_min", [1e-3, 1e-5])
@pytest.mark.parametrize("name", sorted(SAMPLER_ORDERS | ODE_ORDERS))
def test_on_a_grid_uniform_in_t_more_steps_still_bring_a_smaller_error(
    name: str, t_min: float
) -> None:
    """`pytest -rP -k uniform_in_t` prints the slopes that docs/mathematics.md shows."""
    process, counts = VPLinear(t_min=t_min), STEPS[:3]
    errors = []
    for n in counts:
        times = grids.uniform(process, n + 1)
        if name == "reversible":
            times = times.flip(0)
        plan = (SAMPLERS | ODE_SOLVERS)[name](process, times)
        end = V if plan.end is None else marginal_variance(process, plan.end, V)
        start = marginal_variance(process, plan.start, V)
        found = final_variance(plan, V, start, paired=name == "reversible")
        errors.append(abs(math.sqrt(found) - math.sqrt(end)))
    fitted = -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
    print(f"{name}, t_min {t_min}: {fitted:.2f}")
    assert errors[0] > errors[1] > errors[2]


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    process = VPLinear(t_min=1e-3)
    times = grids.uniform(process, 50)
    ddim = SAMPLERS["ddim"](process, times, eta=1.0)
    assert np.allclose(ddim.table, SAMPLERS["ddpm"](process, times).table, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [0.01, 0.1, 0.5])
def test_long_langevin_ends_at_the_known_biased_variance(step: float) -> None:
    """v/(1 − η/(2v)), and not at twice v, which the step ε/2·s + √(2ε)·z would give."""
    process = VPLinear(t_min=1e-3)
    t = 0.3
    v = marginal_variance(process, t, V)
    plan = langevin(process, torch.full((20_000,), t, dtype=torch.float64), step=step)
    eta = step * float(process.sigma(torch.tensor(t, dtype=torch.float64))) ** 2
    assert final_variance(plan, V, 1.0) == pytest.approx(v / (1.0 - eta / (2.0 * v)), rel=1e-6)


def test_a_weaker_corrector_leaves_a_smaller_bias() -> None:
    process = VPLinear(t_min=1e-5)
    start = marginal_variance(process, process.t_max, V)
    times = grids.log_snr(process, 1000)
    errors = [
        abs(final_variance(predictor_corrector(process, times, r=r), V, start) - V)
        for r in (0.5, 0.16)
    ]
    assert errors[1] < errors[0]
    assert errors[1] < 0.05 * V


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_more_steps_a_level_bring_annealed_langevin_to_the_data(name: str) -> None:
    process = make(name, t_min=1e-3)
    times = grids.log_snr(process, 200)
    start = marginal_variance(process, process.t_max, V)
    errors = [
        abs(
            final_variance(
                SAMPLERS["annealed_langevin"](process, times, delta=0.05, steps_per_level=n),
                V,
                start,
            )
            - V
        )
        for n in (5, 40)
    ]
    # Below the level where it stops mixing, noise of about v/(δ n) a level is left.
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05 * V

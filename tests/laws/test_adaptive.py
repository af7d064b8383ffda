"""The adaptive solver: independent rows, scipy's errors and calls, round trips."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from numpy.typing import NDArray

from model.adaptive import AdaptiveRows, relative_norm
from model.flow import clock, log_snr_at, velocity
from model.noise import Stream, normal
from model.pf_ode import Adaptive, FixedGrid, Flowed, decode, encode
from model.process import VPLinear
from model.query import Condition, run
from model.samplers import ODE_SOLVERS
from tests.laws.mixture import denoiser, draw, mixture

NETWORK = mixture()
DENOISER = denoiser(NETWORK)
PROCESS = VPLinear(t_min=1e-3)


def encoded(x: torch.Tensor, tolerance: float, max_calls: int = 5000) -> Flowed:
    solver = Adaptive(tolerance=tolerance, max_calls=max_calls)
    return run(encode(PROCESS, x, Condition.same(len(x)), solver), DENOISER)


def test_an_image_s_latent_does_not_depend_on_its_company() -> None:
    x = draw(NETWORK, 64)
    alone = encoded(x[5:6], 1e-5)
    crowd = encoded(x, 1e-5)
    beside_an_outlier = encoded(torch.stack((x[5], 300.0 * x[6])), 1e-5)
    for other, row in ((crowd, 5), (beside_an_outlier, 0)):
        assert (other.end[row] - alone.end[0]).abs().max() < 1e-10
        assert other.nfe[row] == alone.nfe[0]


def test_round_trip_at_a_tight_tolerance_returns_the_image() -> None:
    x = draw(NETWORK, 16)
    forth = encoded(x, 1e-6)
    solver = Adaptive(tolerance=1e-6)
    back = run(decode(PROCESS, forth.end, Condition.same(16), solver), DENOISER)
    assert forth.converged.all()
    assert back.converged.all()
    assert (back.end - x).abs().max() < 1e-5


def test_latents_of_data_are_standard_normal() -> None:
    x = draw(NETWORK, 200)
    z = encoded(x, 1e-4).end
    # The mixture at t_max still has its means at α = 0.0066: far below the sampling error.
    n = z.numel()
    assert abs(float(z.mean())) < 4 / n**0.5
    assert abs(float(z.var()) - 1.0) < 4 * (2 / n) ** 0.5


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_error_and_calls_stay_near_scipy_s_rk45(tolerance: float) -> None:
    x = draw(NETWORK, 4)
    ours = encoded(x, tolerance)
    tight = encoded(x, 1e-11, max_calls=100_000).end.flatten(1).numpy()
    start = PROCESS.scale(torch.tensor(PROCESS.t_min, dtype=torch.float64))
    for i in range(len(x)):

        def field(tau: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
            time = torch.tensor([tau], dtype=torch.float64)
            u = torch.from_numpy(y).reshape(1, *NETWORK.config.shape)
            eps = NETWORK(u, log_snr_at(time), torch.tensor([-1]))
            return velocity(time, u, eps).flatten().numpy()

        theirs = scipy.integrate.solve_ivp(
            field,
            clock(PROCESS),
            (x[i] / start).flatten().numpy(),
            method="RK45",
            rtol=tolerance,
            atol=tolerance,
        )
        our_error = np.abs(ours.end[i].flatten().numpy() - tight[i]).max()
        their_error = np.abs(theirs.y[:, -1] - tight[i]).max()
        assert our_error < 1.5 * their_error + 1e-10
        assert int(ours.nfe[i]) <= 1.3 * theirs.nfev


def test_a_row_that_runs_out_of_calls_says_so_and_the_others_go_on() -> None:
    x = draw(NETWORK, 16)
    needed = encoded(x, 1e-6).nfe
    cap = int(needed.min())
    assert int(needed.max()) > cap
    found = encoded(x, 1e-6, max_calls=cap)
    assert found.converged.tolist() == (needed <= cap).tolist()
    assert int(found.nfe.max()) <= cap


@pytest.mark.parametrize("steepness", [5.0, 8.0, 13.0, 21.0, 34.0, 55.0])
def test_a_last_step_that_is_rejected_is_made_shorter(steepness: float) -> None:
    """A step may be lengthened to reach the end; if that was too far, it must not be again.

    y = exp(k (t − 1)) is steepest at its end, where the last step is the most likely to fail.
    """
    for tolerance in np.logspace(-2.0, -6.0, 20):
        rows = AdaptiveRows(1, torch.device("cpu"))
        start = torch.full((1, 1), math.exp(-steepness), dtype=torch.float64)
        at = rows.admit(start, 0.0, 1.0, 2000)
        norm, phase = relative_norm(torch.tensor([tolerance])), torch.zeros(1, dtype=torch.int64)
        leaving = False
        while not leaving:
            _, t = rows.ask(at, phase)
            rows.tell(at, phase, steepness * torch.exp(steepness * (t - 1.0))[:, None])
            match int(phase):
                case 0:
                    rows.try_first_step(at, norm)
                case 1:
                    rows.begin(at, norm)
                case 7:
                    leaving = bool(rows.finish_step(at, norm).leaving)
                    phase[:] = 1
            phase += 1
        assert rows.slots["converged"][at].all(), tolerance
        assert rows.slots["y"][at].item() == pytest.approx(1.0, abs=100 * tolerance)


def after_three_steps(y: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Time, next step and state of rows of y' = −rate y: (rows, 2 + n)."""
    solver = AdaptiveRows(y.shape[1], torch.device("cpu"))
    at = solver.admit(y, 0.0, 10.0, 2000)
    norm = relative_norm(torch.full((len(y),), 1e-4, dtype=torch.float64))
    for phase in (0, 1, *[2, 3, 4, 5, 6, 7] * 3):
        phases = torch.full((len(y),), phase)
        solver.tell(at, phases, -rates[:, None] * solver.ask(at, phases)[0])
        if phase in (0, 1, 7):
            {0: solver.try_first_step, 1: solver.begin, 7: solver.finish_step}[phase](at, norm)
    own = [solver.slots[name][at] for name in ("t", "h")]
    return torch.cat((torch.stack(own, 1), solver.slots["y"][at]), 1)


def test_a_row_s_steps_are_the_same_to_the_bit_whatever_its_place_and_company() -> None:
    """Vector instructions and what they leave over must not differ: see `power`."""
    y = normal(torch.arange(61), Stream.PRIOR, 0, (5,))
    rates = y[:, 0].abs() + 0.1
    whole, levels = after_three_steps(y, rates), log_snr_at(rates)
    for start in range(45):
        some = slice(start, start + 1 + start % 16)
        assert torch.equal(after_three_steps(y[some], rates[some]), whole[some])
        assert torch.equal(log_snr_at(rates[some]), levels[some])


def encoded_on_grid(x: torch.Tensor, name: str, steps: int) -> Flowed:
    solver = FixedGrid(name=name, steps=steps)
    return run(encode(PROCESS, x, Condition.same(len(x)), solver), DENOISER)


@pytest.mark.parametrize("name", sorted(ODE_SOLVERS))
def test_fixed_grids_approach_the_adaptive_latent(name: str) -> None:
    x = draw(NETWORK, 4)
    tight = encoded(x, 1e-9).end
    errors = [
        float((encoded_on_grid(x, name, steps).end - tight).abs().max()) for steps in (40, 320)
    ]
    assert errors[1] < errors[0] / 6


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_the_reversible_pair_decodes_what_it_encoded_at_any_step_count(steps: int) -> None:
    x = draw(NETWORK, 16)
    solver, condition = FixedGrid(name="reversible", steps=steps), Condition.same(16)
    there = run(encode(PROCESS, x, condition, solver), DENOISER)
    back = run(decode(PROCESS, there.end, condition, solver, there.companion), DENOISER)
    assert (back.end - x).abs().max() < 1e-9


def test_half_of_a_reversible_pair_is_refused_with_the_way_out() -> None:
    x = draw(NETWORK, 1)
    solver, condition = FixedGrid(name="reversible", steps=20), Condition.same(1)
    with pytest.raises(ValueError, match="by another solver"):
        run(decode(PROCESS, x, condition, solver), DENOISER)

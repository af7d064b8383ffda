"""What the self-check expects of samples: exact variances, and scores that notice what is wrong."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from model import grids
from model.plan import Plan
from model.process import VPLinear
from model.samplers import ODE_SOLVERS, SAMPLERS
from service.jobs.samplers import PfOde, Sampler
from service.selfcheck import mixture, sampling
from service.selfcheck.findings import Z
from tests.laws.gaussian import final_variance
from worker.operations import _plan

PROCESS = VPLinear(t_min=mixture.T_MIN)
COUNT = sampling.COUNT


def plan_of(name: str) -> Plan:
    request = {"name": name} | sampling.SAMPLERS[name].request
    asked = TypeAdapter(Sampler).validate_python(request)
    if isinstance(asked, PfOde):
        grid = grids.WHOLE_GRIDS[asked.solver.grid](PROCESS, asked.solver.steps + 1)
        return ODE_SOLVERS[asked.solver.name](PROCESS, grid)
    return _plan(PROCESS, asked)


def test_every_sampler_is_checked():
    assert set(sampling.SAMPLERS) == {*SAMPLERS, "pf_ode"}


@pytest.mark.parametrize("name", sorted(sampling.SAMPLERS))
def test_the_variance_that_the_steps_leave_is_that_of_their_table(name: str):
    expected = sampling.SAMPLERS[name]
    exact = final_variance(plan_of(name), mixture.VARIANCE, start_variance=1.0)
    within = mixture.VARIANCE if expected.t is None else mixture.variance_at(expected.t)
    assert exact / within == pytest.approx(expected.variance, abs=6e-4)


EXACT = sampling.Sampled(request={}, variance=1.0)


def test_images_of_the_mixture_itself_are_right():
    assert sampling.standard_scores(mixture.draw(COUNT, seed=4), EXACT).max() < Z


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda x: 1.1 * (x - centre(x)) + centre(x), "a variance of 1.2 times"),
        (lambda x: x + 0.3, "a mean moved by 0.6 standard deviations"),
        (lambda x: x - centre(x) + mixture.means()[0], "one component alone"),
        (lambda x: x.reshape(-1, 8, 8).transpose(0, 2, 1)[:, ::-1].reshape(-1, 64), "turned"),
        (lambda x: 0.0 * x + np.nan, "no numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_of_another_model_are_noticed(wrong, what: str):
    scores = sampling.standard_scores(wrong(mixture.draw(COUNT, seed=4)), EXACT)
    assert not scores.max() < Z, what


def centre(x: np.ndarray) -> np.ndarray:
    return mixture.means()[sampling.nearest(x)]


def test_levels_of_noise_are_scored_at_their_own_time():
    t = 0.1
    alpha, sigma = mixture.factors(t)
    x = alpha * mixture.draw(COUNT, seed=4)
    x += sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double().numpy()
    noised = sampling.Sampled(request={}, variance=1.0, t=t)
    assert sampling.standard_scores(x, noised).max() < Z
    assert not sampling.standard_scores(x, EXACT).max() < Z

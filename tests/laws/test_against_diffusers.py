"""Single steps of our tables against diffusers' schedulers, on the discrete schedule both know."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from model.follow import replay
from model.process import DiscreteDDPM, VPCosine
from model.query import Answer, Condition, Query, run
from model.samplers import ODE_SOLVERS, SAMPLERS
from tests.laws.processes import BETAS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies
    diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs

PROCESS = DiscreteDDPM(betas=BETAS)
SETTINGS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
X = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(2, 1, 2, 3)


def eps_of(u: Tensor, step: float) -> Tensor:
    """A stand-in for a network, at step 0 … 999; u is the state of a VP process."""
    return torch.tanh(u + 0.001 * step) + 0.1 * u


def ours(name: str, steps: list[int], x: Tensor) -> Tensor:
    """The state after our table for these steps."""
    times = torch.tensor([(step + 1) / 1000 for step in steps], dtype=torch.float64)
    plan = {**SAMPLERS, **ODE_SOLVERS}[name](PROCESS, times)
    asked = iter(plan.times)

    def answer(query: Query) -> Answer:
        return Answer(eps=eps_of(query.u, float(next(asked)) * 1000 - 1))

    return run(replay(plan, x, torch.arange(2), Condition.same(2)), answer).x


def test_one_ddpm_step_has_their_mean_and_their_variance() -> None:
    scheduler = diffusers.DDPMScheduler(**SETTINGS, clip_sample=False)
    scheduler.set_timesteps(10)  # steps of 100
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = scheduler.step(
        eps_of(X, 500), 500, X, generator=torch.Generator().manual_seed(0)
    ).prev_sample
    plan = SAMPLERS["ddpm"](PROCESS, torch.tensor([0.501, 0.401], dtype=torch.float64))
    x, eps, z = plan.table[0, 0, [0, 3, 4]]
    assert torch.allclose(x * X + eps * eps_of(X, 500) + z * noise, theirs, rtol=1e-5, atol=1e-6)


def test_one_ddim_step_is_theirs() -> None:
    scheduler = diffusers.DDIMScheduler(**SETTINGS, clip_sample=False)
    scheduler.set_timesteps(10)
    theirs = scheduler.step(eps_of(X, 500), 500, X, eta=0.0).prev_sample
    plan = SAMPLERS["ddim"](PROCESS, torch.tensor([0.501, 0.401], dtype=torch.float64))
    x, eps = plan.table[0, 0, [0, 3]]
    assert torch.allclose(x * X + eps * eps_of(X, 500), theirs, rtol=1e-5, atol=1e-6)


def test_two_steps_of_dpmpp_2m_are_theirs() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SETTINGS, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(20)
    steps = scheduler.timesteps.tolist()[:3]
    theirs = X
    for step in steps[:2]:
        theirs = scheduler.step(eps_of(theirs, step), step, theirs).prev_sample
    found = ours("dpmpp_2m", steps, X)
    assert torch.allclose(found, theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "calls"),
    [("euler", "EulerDiscreteScheduler", 1), ("heun", "HeunDiscreteScheduler", 2)],
)
def test_one_ode_step_is_theirs(name: str, kind: str, calls: int) -> None:
    """Their state is x/α, with noise level σ/α."""
    scheduler = getattr(diffusers, kind)(**SETTINGS, timestep_spacing="linspace")
    scheduler.set_timesteps(10)  # 999, 888, …: whole steps
    first, second = 999, 888
    alpha, alpha_after = (
        float(PROCESS.alpha(torch.tensor((step + 1) / 1000, dtype=torch.float64)))
        for step in (first, second)
    )
    state = X / alpha
    for call in range(calls):
        step, scale = ((first, alpha), (second, alpha_after))[call]
        timestep = scheduler.timesteps[call]
        assert float(timestep) == step
        state = scheduler.step(eps_of(state * scale, step), timestep, state).prev_sample
    found = ours(name, [first, second], X)
    assert torch.allclose(found, state.double() * alpha_after, rtol=1e-5, atol=1e-5)


def test_betas_are_theirs() -> None:
    def theirs(schedule: str, **fields: float) -> Tensor:
        settings = SETTINGS | {"beta_schedule": schedule} | fields
        return diffusers.DDPMScheduler(**settings).betas.double()

    assert torch.allclose(theirs("linear"), torch.tensor(BETAS).double(), atol=1e-7)
    roots = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64)
    scaled = theirs("scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert torch.allclose(scaled, roots.square(), atol=1e-7)
    # Cosine: β_i = 1 − ᾱ(i/T)/ᾱ((i−1)/T), at most 0.999; our process stops before that.
    process = VPCosine()
    t = torch.arange(999, dtype=torch.float64) / 1000
    bar = process.alpha(t).square()
    assert torch.allclose(theirs("squaredcos_cap_v2")[:998], 1.0 - bar[1:] / bar[:-1], atol=1e-7)

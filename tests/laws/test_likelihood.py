"""log p of a Gaussian mixture against its closed form."""

import math

import pytest
import torch
from torch import Tensor

from model.analytic import GaussianMixture
from model.likelihood import Exact, Hutchinson, LogLikelihood, log_likelihood
from model.pf_ode import Adaptive
from model.process import PROCESSES, Process, VPLinear
from model.query import Condition, run
from tests.laws.mixture import denoiser, draw, mixture
from tests.laws.processes import make

NETWORK = mixture()
D = 64
NATS_PER_BIT_A_DIM = D * math.log(2.0)


def solve(
    process: Process,
    x: Tensor,
    *,
    tolerance: float,
    probes: int | None = None,
    seed: int = 0,
    label: int | None = None,
) -> LogLikelihood:
    operation = log_likelihood(
        process,
        x,
        Condition.same(len(x), label),
        Adaptive(tolerance=tolerance),
        Exact() if probes is None else Hutchinson(probes=probes),
        torch.arange(len(x)) + 1000 * seed,
    )
    return run(operation, denoiser(NETWORK))


def with_exact_prior(
    process: Process, solved: LogLikelihood, network: GaussianMixture = NETWORK
) -> Tensor:
    """log p with the mixture's own p_T in place of N(0, I)."""
    scale = process.scale(torch.tensor(process.t_max, dtype=torch.float64))
    log_scale = solved.latent[0].numel() * scale.log()
    exact = network.log_prob(process, solved.latent * scale, process.t_max) + log_scale
    return solved.log_likelihood - solved.prior + exact


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_exact_trace_gives_the_closed_form(name: str) -> None:
    process = make(name, t_min=1e-3)
    x = draw(NETWORK, 6)
    found = with_exact_prior(process, solve(process, x, tolerance=1e-6))
    truth = NETWORK.log_prob(process, x, process.t_min)
    assert (found - truth).abs().max() / NATS_PER_BIT_A_DIM < 2e-4


def test_a_tighter_tolerance_brings_a_smaller_error() -> None:
    process = VPLinear(t_min=1e-3)
    x = draw(NETWORK, 4)
    truth = NETWORK.log_prob(process, x, process.t_min)
    errors = [
        float(
            (with_exact_prior(process, solve(process, x, tolerance=tolerance)) - truth).abs().max()
        )
        for tolerance in (1e-3, 1e-5, 1e-7)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] / NATS_PER_BIT_A_DIM < 1e-6


def test_the_class_asked_for_is_the_density_computed() -> None:
    process = VPLinear(t_min=1e-3)
    x = draw(NETWORK, 5)  # image i is of component i
    right = solve(process, x[2:3], tolerance=1e-5, label=2)
    wrong = solve(process, x[2:3], tolerance=1e-5, label=3)
    time = torch.tensor([process.t_min], dtype=torch.float64)
    variance = process.alpha(time) ** 2 * 0.25 + process.sigma(time) ** 2
    centre = process.alpha(time) * NETWORK.means[2]
    truth = -0.5 * ((x[2] - centre).square().sum() / variance + D * (2 * math.pi * variance).log())
    assert float(right.log_likelihood) == pytest.approx(float(truth), abs=0.05)
    assert float(wrong.log_likelihood) < float(truth) - 5


@pytest.mark.parametrize(("tolerance", "bound"), [(1e-5, 2e-4), (1e-8, 1e-6)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=["64", "3072"])
def test_log_p_meets_its_tolerance_in_few_and_in_many_dimensions(
    shape: tuple[int, int, int], tolerance: float, bound: float
) -> None:
    process = VPLinear(t_min=1e-3)
    network = mixture(shape=shape)
    x = draw(network, 4)
    dimensions = math.prod(shape)
    operation = log_likelihood(
        process,
        x,
        Condition.same(4),
        Adaptive(tolerance=tolerance, max_calls=100_000),
        Exact(),
        torch.arange(4),
    )
    solved = run(operation, denoiser(network))
    truth = network.log_prob(process, x, process.t_min)
    error = (with_exact_prior(process, solved, network) - truth).abs().max()
    gap = (with_exact_prior(process, solved, network) - solved.log_likelihood).abs().max()
    bits = dimensions * math.log(2.0)
    print(f"D={dimensions}, {tolerance}: {error / bits:.1e} bits/dim, prior {gap / bits:.1e}")
    assert float(error) / bits < bound
    assert 0 < float(gap) / bits < 1.5e-3  # what N(0, I) as the prior costs


# Share of images whose error the estimate must cover. In 64 dimensions it falls short of 95 % at
# the other tolerances, as its docstring says: not below this.
SHORT = 0.85
COVERED = {1e-3: SHORT, 1e-4: SHORT, 1e-5: 0.95, 1e-6: SHORT, 1e-8: 0.95}
SOME = dict.fromkeys((1e-2, 1e-3, 1e-5), 0.95)
ALL = dict.fromkeys((1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), 0.95)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        pytest.param((1, 8, 8), COVERED, id="64"),
        pytest.param((3, 32, 32), SOME, id="3072"),
        pytest.param((3, 32, 32), ALL, id="3072-all", marks=pytest.mark.slow),
    ],
)
def test_the_answer_s_own_estimate_covers_the_discretisation_error(
    shape: tuple[int, int, int], shares: dict[float, float]
) -> None:
    process, network, count = VPLinear(t_min=1e-3), mixture(shape=shape), 40
    x = draw(network, count)

    def solved(tolerance: float) -> LogLikelihood:
        solver = Adaptive(tolerance=tolerance, max_calls=100_000)
        operation = log_likelihood(
            process, x, Condition.same(count), solver, Exact(), torch.arange(count)
        )
        return run(operation, denoiser(network))

    truth = solved(0.01 * min(shares)).log_likelihood
    for tolerance, share in shares.items():
        found = solved(tolerance)
        true, estimate = (found.log_likelihood - truth).abs(), found.discretization_error
        covered = float((estimate >= true).double().mean())
        ratio = float(estimate.median() / true.median())
        print(f"D={math.prod(shape)}, {tolerance}: covers {covered:.0%}, {ratio:.1f} × the error")
        assert covered >= share
        assert ratio <= 10


SEEDS = 100


def probed(images: Tensor, probes: int) -> LogLikelihood:
    """The same images under 100 seeds, all in one operation: row ``i * 100 + seed``."""
    process = VPLinear(t_min=1e-3)
    return solve(process, images.repeat_interleave(SEEDS, 0), tolerance=1e-3, probes=probes)


def test_eight_probes_come_within_their_error_in_95_of_100_seeds() -> None:
    """4 standard errors plus the answer's discretisation error, about the closed form."""
    process, x = VPLinear(t_min=1e-3), draw(NETWORK, 2)
    found = probed(x, 8)
    truth = NETWORK.log_prob(process, x, process.t_min).repeat_interleave(SEEDS)
    off = (with_exact_prior(process, found) - truth).abs()
    within = off <= 4.0 * found.probe_error + found.discretization_error
    assert (within.reshape(2, SEEDS).sum(1) >= 95).all()
    assert float((off > found.probe_error).double().mean()) > 0.1  # not by being idly wide


def test_the_error_itself_shrinks_with_the_square_root_of_the_probes() -> None:
    process, x = VPLinear(t_min=1e-3), draw(NETWORK, 2)
    exact = solve(process, x, tolerance=1e-3).log_likelihood.repeat_interleave(SEEDS)
    few, many = ((probed(x, k).log_likelihood - exact).square().mean().sqrt() for k in (2, 8))
    # 200 draws know each root mean square to 5 %, and the ratio to 7 %.
    assert float(few / many) == pytest.approx(2.0, rel=4 * 0.07)


def test_hutchinson_s_standard_error_covers_its_error() -> None:
    """40 images at K = 8: within 4 standard errors in at least 38, and not idly wide."""
    process = VPLinear(t_min=1e-3)
    x = draw(NETWORK, 40)
    exact = solve(process, x, tolerance=1e-5)
    estimate = solve(process, x, tolerance=1e-5, probes=8)
    score = (estimate.log_likelihood - exact.log_likelihood) / estimate.probe_error
    assert int((score.abs() < 4).sum()) >= 38
    assert float(score.square().mean()) > 0.3


def test_probe_error_shrinks_with_the_square_root_of_the_probes() -> None:
    process = VPLinear(t_min=1e-3)
    x = draw(NETWORK, 24)
    few, many = (
        solve(process, x, tolerance=1e-3, probes=k).probe_error.square().mean().sqrt()
        for k in (4, 16)
    )
    assert float(few / many) == pytest.approx(2.0, rel=0.35)


def test_a_single_probe_has_no_standard_error_and_the_exact_trace_none() -> None:
    process = VPLinear(t_min=1e-3)
    x = draw(NETWORK, 2)
    assert solve(process, x, tolerance=1e-2, probes=1).probe_error.isnan().all()
    assert (solve(process, x, tolerance=1e-2).probe_error == 0).all()

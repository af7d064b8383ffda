import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from model import grids
from model.process import PROCESSES, DiscreteDDPM, Process, VPCosine, VPLinear
from tests.laws.processes import BETAS, make

TIMES = [1e-5, 1e-3, 0.1, 0.5, 0.9]


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(params=sorted(PROCESSES))
def process(request: pytest.FixtureRequest) -> Process:
    return make(request.param)


def test_log_snr_falls_strictly(process: Process) -> None:
    times = torch.linspace(process.t_min, process.t_max, 1001, dtype=torch.float64)
    assert (process.log_snr(times).diff() < 0).all()


def test_time_inverts_log_snr(process: Process) -> None:
    times = torch.linspace(process.t_min, process.t_max, 101, dtype=torch.float64)
    assert torch.allclose(process.time(process.log_snr(times)), times, rtol=1e-9, atol=1e-12)


def test_marginals_obey_the_sde_s_moment_equations(process: Process) -> None:
    """dα/dt = f α and dσ²/dt = 2 f σ² + g², by central differences."""
    for t in (0.0013, 0.1003, 0.5004, 0.9003):  # between the steps of a discrete process
        h = 1e-6
        before, here, after = tensor(t - h), tensor(t), tensor(t + h)
        alpha_slope = (process.alpha(after) - process.alpha(before)) / (2 * h)
        assert alpha_slope == pytest.approx(
            float(process.drift(here) * process.alpha(here)), rel=1e-6, abs=1e-9
        )
        variance = [process.sigma(time).square() for time in (before, here, after)]
        expected = 2 * process.drift(here) * variance[1] + process.diffusion_squared(here)
        assert float(variance[2] - variance[0]) / (2 * h) == pytest.approx(
            float(expected), rel=1e-6
        )
        assert process.diffusion_squared(here) > 0


@pytest.mark.parametrize(("s", "t"), [(0.05, 0.06), (0.1, 0.9)])
def test_transition_composes_the_marginals(process: Process, s: float, t: float) -> None:
    """x_s ~ N(α_s x_0, σ_s²) sent on from s to t is x_t ~ N(α_t x_0, σ_t²)."""
    earlier, later = tensor(s), tensor(t)
    factor, variance = process.transition(earlier, later)
    assert float(factor * process.alpha(earlier)) == pytest.approx(
        float(process.alpha(later)), rel=1e-12
    )
    total = factor**2 * process.sigma(earlier) ** 2 + variance
    assert float(total) == pytest.approx(float(process.sigma(later)) ** 2, rel=1e-9)


@pytest.mark.parametrize(("s", "t"), [(0.05, 0.06), (0.1, 0.9)])
def test_posterior_is_bayes_rule(process: Process, s: float, t: float) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s) q(x_s | x_0): the product of two Gaussians."""
    earlier, later = tensor(s), tensor(t)
    factor, variance = process.transition(earlier, later)
    alpha, sigma = process.alpha(earlier), process.sigma(earlier)
    precision = factor**2 / variance + 1 / sigma**2
    x_t_weight, x0_weight, posterior_variance = process.posterior(earlier, later)
    assert float(posterior_variance) == pytest.approx(float(1 / precision), rel=1e-9)
    assert float(x_t_weight) == pytest.approx(float(factor / variance / precision), rel=1e-9)
    assert float(x0_weight) == pytest.approx(float(alpha / sigma**2 / precision), rel=1e-9)


def test_prior_log_prob_is_the_normal_density(process: Process) -> None:
    x = torch.tensor([[0.3, -1.2, 40.0]], dtype=torch.float64)
    std = float(process.scale(tensor(process.t_max)))
    expected = scipy.stats.norm.logpdf(x.numpy(), scale=std).sum()
    assert float(process.prior_log_prob(x)) == pytest.approx(float(expected))


def test_discrete_ddpm_has_ho_s_alpha_bar_at_its_steps() -> None:
    process = DiscreteDDPM(betas=BETAS)
    bar = 1.0
    for i, beta in enumerate(BETAS, start=1):
        bar *= 1.0 - beta
        if i in (1, 2, 500, 1000):
            assert float(process.alpha(tensor(i / 1000))) ** 2 == pytest.approx(bar, rel=1e-9)


def test_discrete_ddpm_is_near_its_continuous_limit() -> None:
    discrete, continuous = DiscreteDDPM(betas=BETAS), VPLinear()
    for t in (0.1, 0.5, 0.9):
        assert float(discrete.log_snr(tensor(t))) == pytest.approx(
            float(continuous.log_snr(tensor(t))),
            abs=0.15,  # β² is not small against β at the noisy end
        )


@pytest.mark.parametrize("betas", [(), (0.1, 1.0), (0.0,)])
def test_impossible_betas_are_refused(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        DiscreteDDPM(betas=betas)


@pytest.mark.parametrize("name", ["vp_quadratic", "scaled_linear", "linear_zero", "quadratic_zero"])
def test_log_alpha_is_minus_half_the_integral_of_beta(name: str) -> None:
    process = make(name)
    low, high = getattr(process, "beta_min", 0.0), process.beta_max  # type: ignore[attr-defined]
    beta = {
        "linear_zero": lambda t: high * t,
        "quadratic_zero": lambda t: high * t * t,
    }.get(name, lambda t: (low**0.5 + (high**0.5 - low**0.5) * t) ** 2)
    for t in TIMES:
        integral = scipy.integrate.quad(beta, 0.0, t, epsabs=1e-15)[0]
        assert float(process.log_alpha(tensor(t))) == pytest.approx(-0.5 * integral, rel=1e-10)


@pytest.mark.parametrize("t", TIMES)
def test_vp_linear_is_ddpm_s_beta(t: float) -> None:
    process = VPLinear()
    beta = 0.1 + 19.9 * t
    assert float(process.drift(tensor(t))) == pytest.approx(-0.5 * beta, rel=1e-12)
    assert float(process.diffusion_squared(tensor(t))) == pytest.approx(beta, rel=1e-9)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine"])
def test_sigma_loses_no_digits_near_the_data(name: str, t: float) -> None:
    """σ² = 1 − α² cancels at t = 1e-5 unless written with care; mpmath has 50 digits."""
    mpmath.mp.dps = 50
    m = mpmath.mpf(t)
    if name == "vp_linear":
        integral = mpmath.mpf("0.1") * m + (mpmath.mpf(20) - mpmath.mpf("0.1")) * m * m / 2
        exact = mpmath.sqrt(1 - mpmath.exp(-integral))
    else:
        s = mpmath.mpf("0.008")
        ratio = mpmath.cos((m + s) / (1 + s) * mpmath.pi / 2) / mpmath.cos(
            s / (1 + s) * mpmath.pi / 2
        )
        exact = mpmath.sqrt(1 - ratio**2)
    assert float(PROCESSES[name]().sigma(tensor(t))) == pytest.approx(float(exact), rel=1e-12)


def test_cosine_is_nichol_and_dhariwal_s_and_not_a_cosine_of_beta() -> None:
    """ᾱ falls from 1 slowly: the schedule β = cos(t) would destroy the signal at once."""
    process = VPCosine()
    f = [math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.0, 0.1)]
    assert float(process.alpha(tensor(0.1))) ** 2 == pytest.approx(f[1] / f[0], rel=1e-12)
    assert float(process.alpha(tensor(0.1))) ** 2 > 0.95


def test_impossible_times_are_refused() -> None:
    with pytest.raises(ValueError, match="t_min < t_max"):
        VPLinear(t_min=1.0, t_max=0.5)


SELECTIONS = {
    "trailing": list(range(1000, 0, -100)),
    "leading": list(range(901, 0, -100)),
    "linspace": [round(i) + 1 for i in np.linspace(999, 0, 10)],
}


@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_a_selection_of_a_discrete_schedule_is_the_one_in_use(name: str) -> None:
    """Lin et al. 2024, table 2, for 10 of 1000 steps; step i stands at t = i/1000."""
    times = grids.GRIDS[name](DiscreteDDPM(betas=BETAS), 10)
    assert (times * 1000).round().long().tolist() == SELECTIONS[name]


def test_an_explicit_grid_must_fall_within_the_process_s_range() -> None:
    process = VPLinear(t_min=1e-3)
    assert grids.explicit(process, [1.0, 0.5, 0.001]).tolist() == [1.0, 0.5, 0.001]
    for wrong in ([0.5, 1.0], [1.0, 0.0], [2.0, 0.5], [0.5]):
        with pytest.raises(ValueError, match="falling, within"):
            grids.explicit(process, wrong)


@pytest.mark.parametrize("name", sorted(grids.WHOLE_GRIDS))
def test_grid_runs_from_noise_to_data_and_hits_both_ends(process: Process, name: str) -> None:
    times = grids.GRIDS[name](process, 33)
    assert times.shape == (33,)
    assert float(times[0]) == process.t_max
    assert float(times[-1]) == process.t_min
    assert (times.diff() < 0).all()
    assert grids.GRIDS[name](process, 1).tolist() == [process.t_max]


def test_log_snr_grid_has_equal_steps_in_log_snr(process: Process) -> None:
    steps = process.log_snr(grids.log_snr(process, 50)).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-6)

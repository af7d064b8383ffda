import math

import mpmath
import pytest
import torch

from model import grids
from model.process import PROCESSES, Process, VPCosine, VPLinear

TIMES = [1e-5, 1e-3, 0.1, 0.5, 0.9]


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(params=sorted(PROCESSES))
def process(request: pytest.FixtureRequest) -> Process:
    return PROCESSES[request.param]()


def test_log_snr_falls_strictly(process: Process) -> None:
    times = torch.linspace(process.t_min, process.t_max, 1001, dtype=torch.float64)
    assert (process.log_snr(times).diff() < 0).all()


def test_time_inverts_log_snr(process: Process) -> None:
    times = torch.linspace(process.t_min, process.t_max, 101, dtype=torch.float64)
    assert torch.allclose(process.time(process.log_snr(times)), times, rtol=1e-9, atol=1e-12)


def test_marginals_obey_the_sde_s_moment_equations(process: Process) -> None:
    """dα/dt = f α and dσ²/dt = 2 f σ² + g², by central differences."""
    for t in TIMES[1:]:
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


@pytest.mark.parametrize("name", sorted(grids.GRIDS))
def test_grid_runs_from_noise_to_data_and_hits_both_ends(process: Process, name: str) -> None:
    times = grids.GRIDS[name](process, 33)
    assert times.shape == (33,)
    assert float(times[0]) == process.t_max
    assert float(times[-1]) == process.t_min
    assert (times.diff() < 0).all()


def test_log_snr_grid_has_equal_steps_in_log_snr(process: Process) -> None:
    steps = process.log_snr(grids.log_snr(process, 50)).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-6)

"""The self-check's reference solve: against scipy, and against its own closed form."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from service.selfcheck import flow, mixture


@pytest.mark.parametrize(("label", "guidance"), [(None, 1.0), (2, 1.0), (2, 2.0)])
def test_images_go_where_scipy_takes_them(label: int | None, guidance: float):
    x = mixture.draw(2, seed=1)

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        return flow._velocity(state.reshape(2, -1), t, label, guidance).ravel()

    span = (mixture.T_MIN, mixture.T_MAX)
    solved = solve_ivp(velocity, span, x.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    expected = solved.y[:, -1].reshape(2, -1)
    np.testing.assert_allclose(flow.encoded(x, label, guidance), expected, atol=1e-9)


def test_decoding_undoes_encoding():
    x = mixture.draw(3, seed=2)
    np.testing.assert_allclose(flow.decoded(flow.encoded(x)), x, atol=1e-9)


def test_the_likelihood_is_log_p_but_for_the_prior():
    x = mixture.draw(3, seed=3)
    off = flow.log_likelihood(x) - mixture.log_density(x, mixture.T_MIN)
    assert 1e-4 < np.abs(off).max() < 0.1  # α(t_max) |m| |u| is 0.03 times a normal one

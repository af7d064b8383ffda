import math

import pytest
import torch

from model.data import DataSpec

DIGITS = DataSpec(shape=(1, 8, 8), levels=17)


def test_levels_go_to_cell_centres_and_come_back() -> None:
    levels = torch.arange(17, dtype=torch.float64)
    x = DIGITS.to_model(levels)
    assert float(x[0]) == pytest.approx(-1 + 1 / 17)
    assert float(x[-1]) == pytest.approx(1 - 1 / 17)
    assert torch.allclose(DIGITS.to_levels(x), levels, atol=1e-12)


def test_dequantised_levels_stay_in_their_cell_and_fill_the_range() -> None:
    assert float(DIGITS.to_model(torch.tensor(0.0), 0.0)) == -1.0
    assert float(DIGITS.to_model(torch.tensor(16.0), 1.0)) == pytest.approx(1.0)


def test_a_uniform_density_has_the_bits_of_its_levels() -> None:
    """p = 1/2 a dimension on [−1, 1] says nothing: log2(17) bits."""
    log_p = torch.tensor(-64 * math.log(2.0))
    assert float(DIGITS.bits_per_dim(log_p)) == pytest.approx(math.log2(17))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (8, 8)}, "shape"),
        ({"levels": 1}, "levels"),
        ({"low": 1.0, "high": -1.0}, "below high"),
    ],
)
def test_an_impossible_spec_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec(**({"shape": (1, 8, 8), "levels": 17} | wrong))  # type: ignore[arg-type]

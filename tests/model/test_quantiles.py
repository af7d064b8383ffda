"""Where a value stands among held-out ones, and entries that are of no use."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.quantiles import Quantiles, held_out_quantiles


def of(levels: list[float], values: list[float]) -> Quantiles:
    return Quantiles(np.array(levels), np.array(values))


def test_a_percentile_is_the_share_of_the_values_that_are_at_most_this_one() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    levels = np.linspace(0, 1, 101)
    quantiles = Quantiles(levels, np.quantile(values, levels))
    for asked in np.linspace(-4, 4, 41):
        exact = 100 * float((values <= asked).mean())
        assert quantiles.percentile(float(asked)) == pytest.approx(exact, abs=1.0)


def test_at_a_quantile_it_is_its_level_and_beyond_the_ends_it_is_0_and_100() -> None:
    quantiles = of([0, 0.25, 1], [1.0, 2.0, 4.0])
    asked = [-np.inf, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0, np.inf]
    found = [quantiles.percentile(one) for one in asked]
    assert found == [0, 0, 0, 25, 62.5, 100, 100, 100]


def test_values_that_are_equal_all_count() -> None:
    quantiles = of([0, 0.2, 0.6, 1], [1.0, 2.0, 2.0, 3.0])
    assert quantiles.percentile(2.0) == pytest.approx(60)
    assert of([0, 1], [2.0, 2.0]).percentile(2.0) == 100
    assert of([0, 1], [2.0, 2.0]).percentile(1.9) == 0


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
    st.lists(st.floats(-2e6, 2e6), min_size=2, max_size=5),
)
def test_percentiles_never_fall(values: list[float], asked: list[float]) -> None:
    quantiles = of(np.linspace(0, 1, len(values)).tolist(), sorted(values))
    found = [quantiles.percentile(one) for one in sorted(asked)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 100


def test_a_checkpoint_without_an_entry_has_no_quantiles() -> None:
    assert held_out_quantiles({}, "bits_per_dim") is None
    assert held_out_quantiles({"quantiles": None}, "bits_per_dim") is None


def test_an_entry_is_read_with_whatever_else_it_says() -> None:
    entry = {"levels": [0, 0.5, 1], "values": [1, 2, 4], "images": 360}
    training = {"quantiles": {"bits_per_dim": entry, "method": "pf_ode"}}
    found = held_out_quantiles(json.loads(json.dumps(training)), "bits_per_dim")
    assert found is not None
    assert found.percentile(3.0) == 75


GOOD = [0, 0.5, 1]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "text",
        {},
        {"levels": GOOD},
        {"levels": GOOD, "values": None},
        {"levels": GOOD, "values": [1, 2]},
        {"levels": [0], "values": [1]},
        {"levels": [], "values": []},
        {"levels": GOOD, "values": [1, 2, float("nan")]},
        {"levels": GOOD, "values": [1, 2, float("inf")]},
        {"levels": GOOD, "values": [1, 3, 2]},
        {"levels": GOOD, "values": [1, 2, "3"]},
        {"levels": GOOD, "values": [1, 2, True]},
        {"levels": GOOD, "values": [1, 2, 10**400]},
        {"levels": GOOD, "values": [[1], [2], [3]]},
        {"levels": {"a": 0}, "values": GOOD},
        {"levels": [0, 0.5, 0.9], "values": GOOD},
        {"levels": [0.1, 0.5, 1], "values": GOOD},
        {"levels": [0, 0, 1], "values": GOOD},
        {"levels": [0, float("nan"), 1], "values": GOOD},
    ],
)
def test_an_entry_that_is_no_distribution_is_refused_with_a_reason(entry: Any) -> None:
    with pytest.raises(ValueError, match="unusable quantiles of bits_per_dim"):
        held_out_quantiles({"quantiles": {"bits_per_dim": entry}}, "bits_per_dim")


@pytest.mark.parametrize("quantiles", [3, "text", [1], {"other": {}}, True])
def test_a_table_that_is_none_is_refused_with_a_reason(quantiles: Any) -> None:
    with pytest.raises(ValueError, match="unusable quantiles"):
        held_out_quantiles({"quantiles": quantiles}, "bits_per_dim")

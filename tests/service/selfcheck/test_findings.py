"""What passes a comparison, and what does not."""

import math

import numpy as np
import pytest

from service.selfcheck.findings import at_most, between, same


@pytest.mark.parametrize(("values", "passed"), [([1.0, -3.0], True), ([1.0, 2.1], False)])
def test_no_number_may_be_above_the_bound(values: list[float], passed: bool):
    assert at_most("x", np.array(values), 2.0).passed is passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_never_passes(bad: float):
    assert not at_most("x", np.array([0.0, bad]), 2.0).passed
    assert not between("x", np.array([0.5, bad]), 0.0, 1.0).passed


def test_the_number_furthest_out_is_shown():
    found = between("x", np.array([0.4, -0.1, 0.9]), 0.0, 1.0)
    assert (found.found, found.passed) == (-0.1, False)
    assert between("x", np.array([0.0, 1.0]), 0.0, 1.0).passed


def test_a_value_must_be_the_very_one():
    assert same("x", [404], [404]).passed
    assert not same("x", [404, "text/html"], [404]).passed

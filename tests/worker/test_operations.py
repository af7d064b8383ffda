"""The parameters that requests may carry are those that the mathematics has."""

import inspect
from typing import get_args

import pytest
from pydantic import BaseModel

from model import grids, pf_ode
from model.samplers import ODE_SOLVERS, SAMPLERS
from service.jobs import samplers as s


def by_name(union: object) -> dict[str, type[BaseModel]]:
    kinds = get_args(union)
    return {kind.model_fields["name"].default: kind for kind in kinds}


def test_every_sampler_and_solver_can_be_asked_for_by_its_name() -> None:
    assert set(by_name(s.TableSampler)) == set(SAMPLERS)
    assert set(by_name(s.FixedSolver)) == set(ODE_SOLVERS)


def test_every_grid_can_be_asked_for_by_its_name() -> None:
    assert set(get_args(s.WholeGrid)) == set(grids.WHOLE_GRIDS)
    selections = {name for part in get_args(s.Grid) for name in get_args(part)}
    assert selections == set(grids.GRIDS)
    assert s.SELECTED_FROM == grids.DISCRETE_STEPS


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_s_options_are_those_of_its_function(name: str) -> None:
    asked = set(by_name(s.TableSampler)[name].model_fields) - {"name", "steps", "grid", "clip", "t"}
    keywords = {
        parameter.name
        for parameter in inspect.signature(SAMPLERS[name]).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert asked == keywords


def test_the_default_tolerance_is_the_library_s() -> None:
    assert s.Adaptive().tolerance == pf_ode.Adaptive().tolerance
    assert s.Adaptive().max_calls == pf_ode.Adaptive().max_calls

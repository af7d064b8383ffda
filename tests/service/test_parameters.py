from typing import Any

import pytest
from pydantic import ValidationError

from service.jobs.parameters import (
    OPERATIONS,
    Bound,
    GenerateParameters,
    InvertParameters,
    LoglikParameters,
)
from service.jobs.samplers import Adaptive, Ddpm, PfOde


def test_defaults_are_those_of_the_documentation():
    generate = GenerateParameters(model="m")
    assert (generate.count, generate.sampler, generate.format) == (1, Ddpm(steps=250), "png")
    assert InvertParameters(model="m").solver == Adaptive(tolerance=1e-6)
    loglik = LoglikParameters(model="m")
    assert loglik.solver == Adaptive(tolerance=1e-2)
    assert loglik.dequantization is not None
    assert loglik.dequantization.samples == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_parameters_survive_the_trip_through_a_stored_job(operation: str):
    given = OPERATIONS[operation](model="m", class_label=3)
    assert OPERATIONS[operation].model_validate(given.model_dump(mode="json")) == given


def test_seeds_set_the_count():
    assert GenerateParameters.model_validate({"model": "m", "seeds": [3, 1]}).count == 2


def test_latents_are_decoded_by_the_ode_sampler():
    body = {"model": "m", "sampler": {"name": "pf_ode"}, "init": {"latents": {"job": "j"}}}
    assert isinstance(GenerateParameters.model_validate(body).sampler, PfOde)


def test_a_tighter_tolerance_is_expected_to_take_more_calls_up_to_the_limit():
    expected = [Adaptive(tolerance=10.0**-k).expected_calls for k in range(1, 9)]
    assert expected == sorted(set(expected))
    assert Adaptive(tolerance=1e-6, max_calls=100).expected_calls == 100


@pytest.mark.parametrize(
    ("operation", "body", "field"),
    [
        ("generate", {"count": 0}, "count"),
        ("generate", {"count": "4"}, "count"),
        ("generate", {"seed": -1}, "seed"),
        ("generate", {"seed": 2**53}, "seed"),
        ("generate", {"seed": 1, "seeds": [1]}, "seeds"),
        ("generate", {"count": 2, "seeds": [1]}, "seeds"),
        ("generate", {"seeds": []}, "seeds"),
        ("generate", {"guidance": 2.0}, "guidance"),
        ("generate", {"guidance": float("nan"), "class_label": 1}, "guidance"),
        ("generate", {"sampler": {"name": "dpm"}}, "sampler"),
        ("generate", {"sampler": {"name": "ddim", "eta": 1.5}}, "sampler"),
        ("generate", {"init": {"latents": {}}}, "init"),
        ("generate", {"format": "gif"}, "format"),
        ("generate", {"priority": "urgent"}, "priority"),
        ("generate", {"colour": "red"}, "colour"),
        ("invert", {"solver": {"name": "adaptive", "tolerance": 1.0}}, "solver"),
        ("invert", {"seed": 1}, "seed"),
        ("loglik", {"method": "guess"}, "method"),
        ("loglik", {"divergence": {"kind": "hutchinson", "probes": 65}}, "divergence"),
        ("loglik", {"dequantization": {"kind": "uniform", "samples": 0}}, "dequantization"),
    ],
)
def test_what_is_out_of_range_is_refused_at_its_field(
    operation: str, body: dict[str, Any], field: str
):
    with pytest.raises(ValidationError) as caught:
        OPERATIONS[operation].model_validate({"model": "m"} | body)
    assert [error["loc"][0] for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(
    ("given", "draws"),
    [({}, 64), ({"steps": 1000}, 64), ({"steps": 20}, 20), ({"steps": 20, "draws": 7}, 7)],
)
def test_a_bound_of_few_steps_draws_no_more_than_there_are(
    given: dict[str, int], draws: int
) -> None:
    assert Bound(**given).draws == draws


def test_more_draws_than_steps_are_refused() -> None:
    with pytest.raises(ValidationError, match="as many draws as steps"):
        Bound(steps=20, draws=21)

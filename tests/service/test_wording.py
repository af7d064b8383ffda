"""What is wrong with a request, in words that say what was given, what is allowed, what to do."""

import math
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.api.problems import from_pydantic
from service.jobs.parameters import OPERATIONS

pytestmark = pytest.mark.anyio
MODEL = {"model": "digits"}


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"count": 0}, "count", "1 or more is allowed, given 0"),
        ({"count": "4"}, "count", "an integer is needed, given '4'"),
        ({"count": 1.5}, "count", "an integer is needed, given 1.5"),
        ({"count": None}, "count", "an integer is needed, given null"),
        ({"count": True}, "count", "an integer is needed, given true"),
        ({"class_label": 1, "guidance": 99}, "guidance", "20 or less is allowed, given 99"),
        ({"guidance": math.inf}, "guidance", "a finite number is needed, given inf"),
        ({"guidance": []}, "guidance", "a number is needed, given a list of 0"),
        ({"seeds": []}, "seeds", "at least 1 entry needed, given a list of 0"),
        ({"seeds": {}}, "seeds", "a list is needed, given an object"),
        ({"seeds": [1, "x"]}, "seeds[1]", "an integer is needed, given 'x'"),
        ({"model": ""}, "model", "at least 1 character needed, given ''"),
        ({"model": "x" * 201}, "model", "at most 200 characters needed, given a string of 201"),
        ({"model": 3}, "model", "a string is needed, given 3"),
        ({"grid": "yes"}, "grid", "true or false is needed, given 'yes'"),
        ({"format": "gif"}, "format", "one of 'png', 'webp', 'npy' or 'safetensors' is needed"),
        ({"sampler": {"name": "langevin", "step": 2}}, "sampler.step", "less than 2 is allowed"),
        ({"sampler": {"name": "langevin", "step": 0}}, "sampler.step", "more than 0 is allowed"),
        ({"stream": 3}, "stream", "a JSON object is needed, given 3"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(
    changes: dict[str, Any], field: str, said: str
):
    body = MODEL | changes
    with pytest.raises(ValidationError) as caught:
        OPERATIONS["generate"].model_validate(body)
    (error,) = from_pydantic(caught.value, body).errors
    assert error.field == field
    assert said in error.detail
    assert "Input" not in error.detail, "these are pydantic's words"


@pytest.mark.parametrize(
    ("query", "field", "said"),
    [
        ("limit=0", "limit", "1 or more is allowed, given '0'"),
        ("limit=x", "limit", "an integer is needed, given 'x'"),
        ("status=done", "status", "one of 'queued'"),
        ("cursor=abc", "cursor", "send `next` of the page before"),
        ("owner=me", "owner", "no such parameter here"),
        ("Limit=3&limit=3", "Limit", "known: cursor, limit, status; did you mean"),
    ],
)
async def test_a_wrong_query_of_the_list_of_jobs_is_refused_at_its_parameter(
    client: httpx.AsyncClient, query: str, field: str, said: str
):
    answer = await client.get(f"/jobs?{query}")
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert said in error["detail"]
    assert "[0-9]" not in error["detail"], "nobody sends what a regular expression says"

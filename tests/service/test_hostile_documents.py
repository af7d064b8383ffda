"""JSON from anyone: a document is taken, or refused with a problem that can be answered."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.api.problems import Problem, from_pydantic
from service.api.uploads import parse_document
from service.jobs.parameters import OPERATIONS

some = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DEEP_LIST, DEEP_DICT = b"[" * 10_000 + b"]" * 10_000, b'{"x":' * 10_000 + b"1" + b"}" * 10_000


@pytest.mark.parametrize(
    "text",
    [
        DEEP_LIST,
        DEEP_DICT,
        b'{"model": ' + DEEP_LIST + b"}",
        b'{"sampler": ' + DEEP_DICT + b"}",
        rb'{"model": "\ud800"}',
        rb'{"\udfff": 1}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": NaN}',
        b'{"model": "digits"',
        b"\x00",
        b"",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_a_document_that_is_no_json_is_refused(text: bytes):
    with pytest.raises(Problem) as caught:
        OPERATIONS["generate"].model_validate(parse_document(text))
    assert caught.value.status == 400


FIELDS = sorted({name for kind in OPERATIONS.values() for name in kind.model_fields} | {"name"})
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.sampled_from(["pf_ode", "adaptive", "ddpm", "resize", "npy", "../../etc/passwd", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), inner, max_size=6)
    ),
    max_leaves=20,
)


@some
@given(
    st.sampled_from(sorted(OPERATIONS)),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), documents, max_size=8),
)
def test_a_document_of_anything_is_taken_or_refused_at_its_fields(operation: str, document: Any):
    text = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    errors: list[Any] = []
    try:
        found = parse_document(text)
        OPERATIONS[operation].model_validate(found)
    except ValidationError as error:
        errors = [one.document() for one in from_pydantic(error, found).errors]
        assert errors, "it was refused, but no field was named"
    except Problem:
        pass
    assert len(json.dumps(errors, allow_nan=False)) < 100_000

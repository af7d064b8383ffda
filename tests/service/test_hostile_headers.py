"""Headers, cursors and multipart bodies from anyone: taken, or refused with a problem."""

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service.api.auth import Signer
from service.api.jobs import CURSOR, EVENT_ID
from service.api.operations import duration, preferences, preferred_wait
from service.api.problems import Problem
from service.api.uploads import Upload, read_upload
from service.jobs.events import follows

some = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MOST = 20_000  # bytes of a body
Found = TypeVar("Found")

digits = st.text("0123456789.-+e٣²_ ", max_size=40)
words = st.sampled_from(
    ["wait", "respond-async", "return", "90", "s", "ms", "h", "=", ";", ",", '"']
)
headers = st.lists(words | digits | st.text(max_size=8), max_size=8).map("".join)


def taken(call: Callable[[], Found]) -> Found | Problem:
    """What was made of something, or the problem that refused it."""
    try:
        return call()
    except Problem as problem:
        return problem


@some
@given(headers)
@example("wait=" + "9" * 400)
@example("wait=٣")
@example('wait="5";x, WAIT=7')
def test_a_preference_is_a_number_of_seconds_or_none(text: str):
    wait = preferred_wait(text)
    assert wait is None or wait >= 0
    assert all(name == name.lower() for name in preferences(text))


@some
@given(headers | st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,12})? ?(ms|s|m|h|d)?", fullmatch=True))
@example("0.000000001ms")
@example("999999999h")
@example("٣s")
@example("1e9999s")
def test_a_deadline_is_finite_and_in_the_future_or_refused(text: str):
    found = taken(lambda: duration(text))
    if isinstance(found, Problem):
        assert found.status == 422
        assert found.errors[0].field == "Cancel-After"
    else:
        assert 0 < found < math.inf


@some
@given(digits | st.from_regex(EVENT_ID, fullmatch=True))
@example("9" * 19 + "-" + "9" * 19)
@example("٣-٣")
@example("1-1\n")
def test_an_event_id_that_is_taken_can_be_ordered(text: str):
    if EVENT_ID.fullmatch(text):
        assert re.fullmatch("[0-9-]+", text)
        assert not follows(text, text)


@some
@given(digits | st.from_regex(CURSOR, fullmatch=True))
@example("1.000000\n")
@example("inf")
def test_a_cursor_that_is_taken_is_a_number(text: str):
    if CURSOR.fullmatch(text):
        assert float(text) < 1e16


@some
@given(st.text(max_size=30), st.text(max_size=60))
@example("", "")
@example("9" * 5000, "x")
def test_a_signature_that_was_made_up_is_refused(expires: str, signature: str):
    async def secret() -> bytes:
        return b"s" * 32

    async def ask() -> None:
        query = {"expires": expires, "signature": signature}
        await Signer(secret, 60).check("/jobs/x/events", query)

    found = taken(lambda: asyncio.run(ask()))
    assert isinstance(found, Problem)
    assert found.status == 403


async def uploaded(content_type: str, body: bytes, pieces: int) -> Upload:
    size = max(1, len(body) // pieces)
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    raw = [(b"content-type", content_type.encode("latin-1", "replace"))]
    scope = {"type": "http", "method": "POST", "path": "/invert", "headers": raw}
    return await read_upload(Request(scope, receive), MOST, max_files=4)


names = st.sampled_from(
    ["request", "image", "latents", "other", "", "../../x", "\0", "é", '"', "*"]
)
lines = st.sampled_from(
    [
        'Content-Disposition: form-data; name="request"',
        'Content-Disposition: form-data; name="image"; filename="x.png"',
        "Content-Disposition: form-data; name*=UTF-8''request",
        "Content-Disposition: attachment",
        "Content-Disposition",
        ": x",
        "Content-Type: application/json",
        "Content-Type: text/plain; charset=nonsense",
        "Content-Transfer-Encoding: base64",
        "X: " + "y" * 9000,
    ]
)


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A multipart body whose parts and boundaries may be anything."""
    body = b""
    for _ in range(draw(st.integers(0, 7))):
        head = draw(st.lists(lines, max_size=4))
        name = draw(names)
        file = draw(st.sampled_from(["", '; filename="f"', "; filename=", '; filename="../../f"']))
        head.append(f'Content-Disposition: form-data; name="{name}"{file}')
        content = draw(
            st.sampled_from([b"{}", b'{"model": "digits"}', b"[", b"\xff"]) | st.binary()
        )
        start = draw(st.sampled_from([b"--b0\r\n", b"--b0\n", b"--b1\r\n", b"--b0--\r\n", b""]))
        body += (
            start + "\r\n".join(head).encode("utf-8", "replace") + b"\r\n\r\n" + content + b"\r\n"
        )
    return body + draw(st.sampled_from([b"--b0--\r\n", b"--b0--", b"--b0", b""]))


TYPES = ["", "; boundary=", "; boundary=b0", '; boundary="b0"', "; boundary=b0; charset=nonsense"]


@some
@given(
    st.sampled_from(TYPES).map("multipart/form-data{}".format) | st.text(max_size=30),
    forms() | st.binary(max_size=200),
    st.integers(1, 40),
)
@example("multipart/form-data; boundary=" + "b" * 5000, b"--b0--", 1)
@example("multipart/form-data; boundary=b0", b"--b0\r\n" * 3000 + b"--b0--", 3)
def test_a_body_of_anything_is_taken_apart_or_refused(content_type: str, body: bytes, pieces: int):
    found = taken(lambda: asyncio.run(uploaded(content_type, body, pieces)))
    if isinstance(found, Problem):
        assert found.status in (400, 413, 415, 422)
        assert found.detail
    else:
        assert isinstance(found.request, dict)
        assert sum(map(len, found.images)) <= len(body)

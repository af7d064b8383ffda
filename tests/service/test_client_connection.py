"""What both clients do when a line breaks or a service is away, and what they do with a key."""

import base64
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from starlette.responses import Response

from service.client import (
    AsyncClient,
    Client,
    Event,
    InvalidInput,
    RequestRefused,
    ServiceUnavailable,
)
from service.jobs.lease import Claim
from tests.service.clients import Connect, Serve
from tests.service.helpers import until
from tests.service.network import Gate, document, line_to
from tests.service.uploads import GREY, png

KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.retries.FIRST_PAUSE", 0.02)


def test_a_stream_that_breaks_is_resumed_where_it_was(
    url: str, gate: Gate, connect: Connect, serve_one: Serve
):
    claims: list[Claim] = []
    serve_one(claims.append)
    with line_to(url) as line:
        client = connect(line.url, retries=1)  # of failures in a row
        job = client("submit", "generate", {"model": "digits"})
        claim = until(lambda: claims)[0]
        seen: list[Event] = []

        def go_on(event: Event) -> None:
            seen.append(event)
            match event.type, event.data.get("calls"):
                case "started", _:
                    claim.event("step", {"calls": 1, "progress": 0.1})
                case "step", 1:
                    line.cut()
                    claim.event("step", {"calls": 2, "progress": 0.2})
                case "step", 2:
                    line.cut()
                    claim.succeed({})

        ended = client("wait", job, on_event=go_on)
    assert ended.status == "succeeded"
    assert [event.type for event in seen] == ["queued", "started", "step", "step", "succeeded"]
    assert [event.progress for event in seen[2:4]] == [0.1, 0.2]
    resumed = gate.headers("GET", f"/jobs/{job.id}/events", "Last-Event-ID")
    assert resumed == [None, seen[2].id, seen[3].id]


def test_a_quiet_stream_may_break_as_often_as_it_likes_if_it_held_for_a_while(
    url: str, gate: Gate, connect: Connect, serve_one: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.client.events.HEALTHY", 0.0)

    with line_to(url) as line:

        def work(claim: Claim) -> None:
            path = f"/jobs/{claim.job.id}/events"
            for count in range(1, 5):
                until(lambda count=count: len(gate.headers("GET", path, "Accept")) == count)
                line.cut()
            claim.succeed({"images": []})

        serve_one(work)
        client = connect(line.url, retries=1)
        job = client("submit", "generate", {"model": "digits"})
        assert client("wait", job).status == "succeeded"


def test_a_stream_that_breaks_again_and_again_is_given_up(url: str, gate: Gate, connect: Connect):
    with line_to(url) as line:
        client = connect(line.url, retries=2)
        job = client("submit", "generate", {"model": "digits"})
        line.cut()
        line.swallowed = 9
        with pytest.raises(ServiceUnavailable, match=f"GET /jobs/{job.id}/events"):
            client("wait", job)
    assert len(gate.headers("GET", f"/jobs/{job.id}/events", "Accept")) == 3


def test_events_go_on_from_behind_any_one_of_them(url: str, connect: Connect, serve_one: Serve):
    client = connect(url)
    picture = base64.b64encode(png()).decode()

    def work(claim: Claim) -> None:
        claim.event("preview", {"calls": 5, "images": [{"index": 3, "png": picture}]})
        claim.succeed({})

    serve_one(work)
    job = client("submit", "generate", {"model": "digits"})
    events = client("events", job)
    assert [event.type for event in events] == ["queued", "started", "preview", "succeeded"]
    previews = events[2].previews()
    np.testing.assert_array_equal(np.asarray(previews.pop(3)), GREY)
    assert previews == events[1].previews() == {}
    assert client("events", job, after=events[1].id) == events[2:]
    assert client("events", job, after=events[3].id) == []


def test_retry_after_is_waited_for_in_seconds_and_to_a_date(url: str, gate: Gate, connect: Connect):
    client = connect(url)
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    gate.answers = [
        document({"detail": "full"}, 503, **{"Retry-After": "1"}),
        document({"detail": "too fast"}, 429, **{"Retry-After": format_datetime(then, True)}),
    ]
    client("submit", "generate", {"model": "digits"})
    first, second, _ = (request.time for request in gate.seen)
    assert second - first >= 1.0
    assert datetime.now(UTC) >= then


def test_a_service_that_asks_for_more_patience_than_there_is_is_given_up_at_once(
    url: str, gate: Gate, connect: Connect
):
    full = {"title": "Service Unavailable", "status": 503, "detail": "the queue is full"}
    gate.answers = [document(full, 503, **{"Retry-After": "3600"})]
    with pytest.raises(ServiceUnavailable, match="queue is full") as away:
        connect(url)("submit", "generate", {"model": "digits"})
    assert (away.value.status, away.value.retry_after) == (503, 3600.0)
    assert len(gate.seen) == 1


def test_as_many_retries_are_made_as_were_asked_for(url: str, gate: Gate, connect: Connect):
    gate.answers = [document({}, 503) for _ in range(9)]
    with pytest.raises(ServiceUnavailable):
        connect(url, retries=3)("models")
    assert len(gate.seen) == 4


def test_one_idempotency_key_goes_with_all_tries_of_a_submission(
    url: str, gate: Gate, connect: Connect
):
    with line_to(url) as line:
        line.swallowed = 2
        client = connect(line.url)
        client("submit", "generate", {"model": "digits"})
        client("submit", "invert", {"model": "digits"}, images=[png()])
    drawn = gate.headers("POST", "/generate", "Idempotency-Key")
    encoded = gate.headers("POST", "/invert", "Idempotency-Key")
    assert len(drawn) == 3
    assert len(set(drawn)) == 1
    assert drawn[0]
    assert encoded[0] not in (None, drawn[0])


def test_nobody_there_is_said_with_what_to_do(connect: Connect):
    client = connect("http://127.0.0.1:1", retries=1)
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:1 .*fokker up") as away:
        client("models")
    assert away.value.status is None
    assert client("ready") is False


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response("<html>Hello", media_type="text/html"), "another service"),
        (Response(status_code=308, headers={"Location": "https://moved"}), "https://moved"),
        (Response("<html>Gone", 404), "<html>Gone"),
    ],
)
def test_another_service_at_the_address_is_told_from_ours(
    url: str, gate: Gate, connect: Connect, answer: Response, said: str
):
    gate.answers = [answer]
    with pytest.raises((ServiceUnavailable, RequestRefused), match=said):
        connect(url)("models")


def test_the_key_is_shown_to_the_service_and_to_nobody_else(
    url: str, gate: Gate, connect: Connect, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    client = connect(url, api_key=KEY + "\n")
    client("models")
    with pytest.raises(RequestRefused) as refused:
        client("job", "nobody")
    assert gate.headers("GET", "/models", "Authorization") == [f"Bearer {KEY}"]
    assert repr(client.client) in (f"Client({url!r})", f"AsyncClient({url!r})")
    assert KEY not in caplog.text + repr(refused.value) + repr(vars(client.client))
    assert "httpx" in caplog.text, "nothing was logged, so nothing was looked at"


def test_the_environment_names_the_service_and_the_key(
    url: str, gate: Gate, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FOKKER_URL", f"{url}/")
    monkeypatch.setenv("FOKKER_API_KEY", KEY)
    connect()("models")
    connect(api_key="")("models")
    assert gate.headers("GET", "/models", "Authorization") == [f"Bearer {KEY}", None]


@pytest.mark.parametrize(
    "given",
    [
        {"url": "localhost:8000"},
        {"url": "ftp://localhost"},
        {"url": "http://"},
        {"url": f"http://user:{KEY}@localhost"},
        {"api_key": f"{KEY}\r\nX: 1"},
    ],
)
def test_an_address_or_a_key_that_is_none_is_refused(given: dict[str, Any]):
    name = next(iter(given))
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidInput, match=f"^{name}: ") as refused:
            kind(**given)
        assert KEY not in str(refused.value)

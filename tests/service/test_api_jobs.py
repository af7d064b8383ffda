"""Jobs, models, health and the API's manners over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from service.api import create_app
from service.jobs.lease import Claim, WorkerStore
from service.settings import Settings, SettingsError
from tests.service.backends import BACKENDS, Backend
from tests.service.helpers import CARDS, LIMIT, ROOMS
from tests.service.network import served

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, settings: Settings) -> Backend:
    """The API is the same whatever holds its jobs."""
    return BACKENDS[request.param](settings)


async def submitted(client: httpx.AsyncClient) -> str:
    answer = await client.post("/generate", json={"model": "digits"})
    assert answer.status_code == 202
    return str(answer.json()["id"])


async def claimed(client: httpx.AsyncClient, worker: WorkerStore) -> Claim:
    job_id = await submitted(client)
    claim = worker.claim(["sha256:digits"], ROOMS)
    assert claim is not None
    assert claim.job.id == job_id
    return claim


async def stream(
    client: httpx.AsyncClient, job_id: str, after: str | None = None
) -> list[ServerSentEvent]:
    headers = {"Last-Event-ID": after} if after else {}
    async with aconnect_sse(client, "GET", f"/jobs/{job_id}/events", headers=headers) as source:
        return [event async for event in source.aiter_sse()]


@pytest.fixture
def server(backend: Backend, worker: WorkerStore) -> Iterator[str]:
    """The address of an API under uvicorn, for what only a real connection shows."""
    worker.announce(CARDS, ttl=60)
    with served(backend.app()) as url:
        yield url


@pytest.fixture
async def remote(server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server) as client:
        yield client


async def test_a_job_s_artifacts_are_linked_and_served(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    claim.put_artifact("0.png", "image/png", b"\x89PNG\r\n")
    claim.succeed({"images": [{"artifact": "0.png"}]})
    job = (await client.get(f"/jobs/{claim.job.id}")).json()
    assert job["status"] == "succeeded"
    assert job["created"] <= job["started"] <= job["finished"]
    answer = await client.get(job["links"]["artifacts"]["0.png"])
    assert (answer.status_code, answer.content) == (200, b"\x89PNG\r\n")
    assert answer.headers["Content-Type"] == "image/png"


async def test_a_failed_job_says_why(client: httpx.AsyncClient, worker: WorkerStore):
    claim = await claimed(client, worker)
    error = {"type": "about:blank", "title": "Failed", "detail": "out of memory"}
    claim.fail(error)
    job = (await client.get(f"/jobs/{claim.job.id}")).json()
    assert (job["status"], job["error"], job["result"]) == ("failed", error, None)


async def test_canceling_twice_leaves_a_canceled_job(client: httpx.AsyncClient):
    job_id = await submitted(client)
    first = await client.post(f"/jobs/{job_id}/cancel")
    assert (first.status_code, first.json()["status"]) == (200, "canceled")
    again = (await client.post(f"/jobs/{job_id}/cancel")).json()
    # Signed links say when they expire, a second later perhaps.
    assert again | {"links": None} == first.json() | {"links": None}


async def test_canceling_a_running_job_asks_its_worker(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    job = (await client.post(f"/jobs/{claim.job.id}/cancel")).json()
    assert (job["status"], job["cancel_requested"]) == ("running", True)
    assert worker.canceled() == {claim.job.id: "requested"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/nobody"),
        ("GET", "/jobs/nobody/events"),
        ("GET", "/jobs/nobody/artifacts/0.png"),
        ("POST", "/jobs/nobody/cancel"),
        ("GET", "/models/nothing"),
        ("GET", "/nowhere"),
        ("GET", "/jobs/..%2f..%2fetc/events"),
    ],
)
async def test_what_is_not_there_is_a_404_problem(
    client: httpx.AsyncClient, method: str, path: str
):
    answer = await client.request(method, path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["title"] == "Not Found"


async def test_an_artifact_that_is_not_there_is_answered_with_those_that_are(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    claim.put_artifact("grid.png", "image/png", b"x")
    answer = await client.get(f"/jobs/{claim.job.id}/artifacts/gird.png")
    assert answer.status_code == 404
    assert 'did you mean "grid.png"' in answer.json()["detail"]


async def test_another_method_is_a_405_problem(client: httpx.AsyncClient):
    answer = await client.put("/generate")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert "use POST" in answer.json()["detail"]


async def test_the_stream_of_a_job_tells_its_story_and_ends(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    claim.event("step", {"calls": 1, "progress": 0.5})
    claim.event("preview", {"images": [{"index": 0, "png": "aGk="}]})
    claim.succeed({"images": []})
    events = await stream(client, claim.job.id)
    assert [event.event for event in events] == [
        "queued",
        "started",
        "step",
        "preview",
        "succeeded",
    ]
    assert events[1].json() == {"worker": "worker-1", "attempt": 1}
    assert events[2].json() == {"calls": 1, "progress": 0.5}
    assert events[4].json() == {"result": {"images": []}}


async def test_a_stream_resumes_exactly_after_the_last_event_seen(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    for calls in range(20):
        claim.event("step", {"calls": calls})
    claim.succeed({})
    events = await stream(client, claim.job.id)
    for seen in (0, 10, 20):
        rest = await stream(client, claim.job.id, after=events[seen].id)
        assert [event.id for event in rest] == [event.id for event in events[seen + 1 :]]


async def test_after_the_terminal_event_there_is_no_content(
    client: httpx.AsyncClient, worker: WorkerStore
):
    claim = await claimed(client, worker)
    claim.succeed({})
    last = (await stream(client, claim.job.id))[-1].id
    for after in (last, "9999999999999-0"):
        headers = {"Last-Event-ID": after}
        answer = await client.get(f"/jobs/{claim.job.id}/events", headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("after", ["x", "1-2-3", "-1", "1" * 30])
async def test_an_event_id_that_is_none_is_refused(client: httpx.AsyncClient, after: str):
    job_id = await submitted(client)
    answer = await client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": after})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Last-Event-ID"


async def test_events_arrive_while_the_job_runs(remote: httpx.AsyncClient, worker: WorkerStore):
    claim = await claimed(remote, worker)
    seen = []
    async with asyncio.timeout(LIMIT):
        async with aconnect_sse(remote, "GET", f"/jobs/{claim.job.id}/events") as source:
            async for event in source.aiter_sse():
                seen.append(event.event)
                match event.event:
                    case "started":
                        claim.event("step", {"calls": 1})
                    case "step":
                        claim.succeed({})
    assert seen == ["queued", "started", "step", "succeeded"]


async def test_a_quiet_stream_is_pinged(remote: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.api.streams.PING", 0.05)
    job_id = await submitted(remote)
    pings = 0
    async with asyncio.timeout(LIMIT), remote.stream("GET", f"/jobs/{job_id}/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            pings += line.startswith(": ping")
            if pings == 2:
                break
    assert pings == 2


async def test_models_are_listed_with_whether_a_worker_serves_them(
    client: httpx.AsyncClient, worker: WorkerStore
):
    worker.announce(CARDS[:1], ttl=60)
    answer = await client.get("/models")
    assert answer.status_code == 200
    live = {model["name"]: model["live"] for model in answer.json()["models"]}
    assert live == {"digits": True, "faces": False, "sprites": False}
    assert (await client.get("/models/faces")).json() == CARDS[1] | {"live": False}


async def test_ready_needs_a_live_worker(client: httpx.AsyncClient, worker: WorkerStore):
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "worker" in answer.json()["detail"]
    assert answer.json()["models"] == {"digits": False, "faces": False, "sprites": False}
    worker.announce(CARDS[:1], ttl=60)
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["models"] == {"digits": True, "faces": False, "sprites": False}


async def test_without_redis_the_api_is_alive_and_answers_503(settings: Settings):
    app = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["detail"]) == (503, "the job store does not answer")
        answers = [
            await client.post("/generate", json={"model": "digits"}),
            await client.get("/jobs/a"),
            await client.get("/jobs/a/events"),
            await client.get("/models"),
        ]
        for answer in answers:
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["Content-Type"] == "application/problem+json"


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _references(child)


async def test_the_documentation_describes_the_bodies_of_all_operations(
    client: httpx.AsyncClient,
):
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path in ("/generate", "/invert", "/loglik"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert "images" in schemas["InvertRequest"]["required"]
    assert schemas["GenerateParameters"]["properties"]["count"]["default"] == 1
    for name in ("GenerateParameters", "InvertRequest", "LoglikRequest", "JobView"):
        assert schemas[name]["properties"]["priority"]["enum"] == ["interactive", "batch"]
    assert schemas["LoglikRequest"]["properties"]["priority"]["default"] == "interactive"
    assert (await client.get("/docs")).status_code == 200


async def test_the_application_needs_a_redis_and_says_so():
    with pytest.raises(SettingsError, match="FOKKER_REDIS_URL"):
        create_app(Settings(redis_url=None))

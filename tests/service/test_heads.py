"""HEAD, and methods that a path has not."""

import asyncio

import httpx
import pytest
import redis

from service.api import create_app
from service.jobs.lease import WorkerStore
from service.jobs.redis_store import keys
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.helpers import LIMIT, ROOMS, a_job
from tests.service.network import served

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/healthz", "/jobs", "/models/digits", "/openapi.json", "/docs"])
async def test_head_gives_what_get_gives_without_its_body(client: httpx.AsyncClient, path: str):
    head, got = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    varies = ("x-request-id", "date")
    for one in (head, got):
        for name in varies:
            one.headers.pop(name, None)
    assert head.headers == got.headers


async def test_head_of_what_is_not_there_is_a_404(client: httpx.AsyncClient):
    answer = await client.head("/jobs/nobody")
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_head_of_a_running_job_s_events_ends_at_once_and_leaves_no_reader(
    settings: Settings, worker: WorkerStore, store: JobStore, redis_url: str
):
    job = await store.submit(a_job())
    worker.claim([job.digest], ROOMS)
    with served(create_app(settings)) as url, redis.Redis.from_url(redis_url) as admin:
        async with asyncio.timeout(LIMIT), httpx.AsyncClient(base_url=url) as client:
            for _ in range(3):
                answer = await client.head(f"/jobs/{job.id}/events")
                assert answer.status_code == 200
                assert answer.headers["Content-Type"].startswith("text/event-stream")
            while admin.hexists(keys.WATCHERS, job.id):
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/generate", "POST"),
        ("HEAD", "/generate", "POST"),
        ("PATCH", "/jobs/x", "DELETE, GET, HEAD"),
        ("POST", "/jobs", "GET, HEAD"),
        ("OPTIONS", "/jobs", "GET, HEAD"),
        ("TRACE", "/jobs/x/cancel", "POST"),
        ("DELETE", "/metrics", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_has_not_is_answered_with_those_that_it_has(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
):
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    if method != "HEAD":
        assert f"{method} is not allowed at {path}; use {allowed}" in answer.json()["detail"]

"""Streams on the POST itself, abandoned jobs, gaps, and previews with a bound."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from httpx_sse import EventSource, aconnect_sse

from service.api import create_app
from service.api.server import Server
from service.jobs import keys
from service.jobs.job import Status
from service.jobs.lease import Claim, WorkerStore
from service.jobs.store import FROM_THE_START, JobStore
from service.settings import Settings
from tests.service.helpers import CARDS, LIMIT, ROOMS, a_job, until

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]
BODY = {"model": "digits"}
GRACE = 0.4  # seconds


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.store.ABANDONED_AFTER", GRACE)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    """A client of an API on a port, and the server, to be stopped."""
    server = Server(uvicorn.Config(create_app(settings), port=0, timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client, server
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, LIMIT)


class Reader:
    """Reads a stream, event by event; the line stays open between them."""

    def __init__(self, source: EventSource) -> None:
        self.response = source.response
        self.events = source.aiter_sse()

    async def kind(self) -> str:
        """The next event's type."""
        return (await anext(self.events)).event

    @property
    def job(self) -> str:
        """The id of the job, as the POST's Location says it."""
        return self.response.headers["Location"].removeprefix("/jobs/")


@asynccontextmanager
async def posted(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[Reader]:
    accept = {"Accept": "text/event-stream"} | headers
    async with aconnect_sse(client, "POST", "/generate", json=BODY, headers=accept) as source:
        yield Reader(source)


@asynccontextmanager
async def following(client: httpx.AsyncClient, job: str) -> AsyncIterator[Reader]:
    async with aconnect_sse(client, "GET", f"/jobs/{job}/events") as source:
        yield Reader(source)


def claimed(worker: WorkerStore) -> Claim:
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    return claim


async def status_of(store: JobStore, job: str) -> Status:
    found = await store.get(job)
    assert found is not None
    return found.status


async def becomes(store: JobStore, job: str, status: Status) -> None:
    async with asyncio.timeout(LIMIT):
        while await status_of(store, job) is not status:
            await asyncio.sleep(0.02)


async def test_a_post_may_stream_its_job(settings: Settings, store: JobStore, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    seen = []
    async with running(settings) as (client, _), asyncio.timeout(LIMIT), posted(client) as reader:
        assert reader.response.status_code == 200
        async for event in reader.events:
            seen.append(event.event)
            if event.event == "queued":
                claimed(worker).succeed({"images": []})
    assert seen == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("runs", [False, True])
async def test_a_job_whose_reader_has_left_is_canceled(
    settings: Settings, store: JobStore, worker: WorkerStore, runs: bool
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        async with posted(client) as reader:
            assert await reader.kind() == "queued"
            job = reader.job
            claim = claimed(worker) if runs else None
        if claim is None:
            await becomes(store, job, Status.CANCELED)
        else:
            async with asyncio.timeout(LIMIT):
                while worker.canceled() != {job: "abandoned"}:
                    await asyncio.sleep(0.02)
            claim.cancel("abandoned")
        found = await store.get(job)
        assert found is not None
        assert found.cancel_reason == "abandoned"


async def test_a_reader_who_comes_back_keeps_the_job(
    settings: Settings, store: JobStore, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        async with posted(client) as reader:
            await reader.kind()
            job = reader.job
        async with following(client, job) as again:
            await again.kind()
            await asyncio.sleep(3 * GRACE)
            assert await status_of(store, job) is Status.QUEUED
        await becomes(store, job, Status.CANCELED)


async def test_one_of_two_readers_is_enough(
    settings: Settings, store: JobStore, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _), posted(client) as reader:
        await reader.kind()
        job = reader.job
        async with following(client, job) as other:
            await other.kind()
        await asyncio.sleep(3 * GRACE)
        assert await status_of(store, job) is Status.QUEUED


async def test_who_prefers_it_may_leave(settings: Settings, store: JobStore, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        async with posted(client, Prefer="respond-async") as reader:
            await reader.kind()
            job = reader.job
        await asyncio.sleep(3 * GRACE)
        assert await status_of(store, job) is Status.QUEUED


async def test_readers_of_a_job_that_was_only_queued_may_leave(
    settings: Settings, store: JobStore, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        job = (await client.post("/generate", json=BODY)).json()["id"]
        async with following(client, job) as reader:
            await reader.kind()
        await asyncio.sleep(3 * GRACE)
        assert await status_of(store, job) is Status.QUEUED


async def test_a_server_that_stops_cancels_no_job(
    settings: Settings, store: JobStore, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, server), posted(client) as reader:
        await reader.kind()
        job = reader.job
        server.should_exit = True
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in reader.events:
                pass
    async with running(settings):  # another one, which looks after abandoned jobs
        await asyncio.sleep(3 * GRACE)
        assert await status_of(store, job) is Status.QUEUED


# Gaps


async def seen_from(store: JobStore, job: str, after: str) -> list[str]:
    return [event.type async for event in store.follow(job, after, idle=0.1) if event]


async def test_a_reader_who_fell_behind_is_told(
    settings: Settings, worker: WorkerStore, redis_url: str
):
    store = JobStore(settings)
    job = (await store.submit(a_job())).id
    claim = claimed(worker)
    first = (await store.read_events(job, FROM_THE_START, 1))[0].id
    for calls in range(5):
        claim.event("step", {"calls": calls})
    kept = (await store.read_events(job, FROM_THE_START, 1))[4].id
    with redis.Redis.from_url(redis_url) as client:
        client.xtrim(keys.events(job), minid=kept, approximate=False)
    claim.succeed({})
    assert await seen_from(store, job, first) == ["gap", *["step"] * 3, "succeeded"]
    gap = await anext(event async for event in store.follow(job, first, idle=0.1) if event)
    assert json.loads(gap.data) == {"status": "succeeded", "attempt": 1}
    assert await seen_from(store, job, kept) == ["step"] * 2 + ["succeeded"]
    await store.close()


async def test_without_a_loss_there_is_no_gap(store: JobStore, worker: WorkerStore):
    job = (await store.submit(a_job())).id
    claim = claimed(worker)
    first = (await store.read_events(job, FROM_THE_START, 1))[0].id
    claim.succeed({})
    assert await seen_from(store, job, first) == ["started", "succeeded"]


# Previews


async def previews(store: JobStore, job: str) -> list[Any]:
    events = await store.read_events(job, FROM_THE_START, 1)
    return [json.loads(event.data)["n"] for event in events if event.type == "preview"]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"max_previews": 3}, [7, 8, 9]),
        ({"preview_bytes": 250}, [8, 9]),
        ({"preview_bytes": 50}, []),
    ],
)
async def test_the_last_previews_are_kept_and_every_step(
    settings: Settings, store: JobStore, bounds: dict[str, int], kept: list[int]
):
    worker = WorkerStore(settings.model_copy(update=bounds), "w", print)
    job = (await store.submit(a_job())).id
    claim = claimed(worker)
    for n in range(10):
        claim.event("preview", {"n": n, "image": "x" * 80})
        claim.event("step", {"calls": n})
    claim.succeed({})
    assert await previews(store, job) == kept
    kinds = [event.type for event in await store.read_events(job, FROM_THE_START, 1)]
    assert kinds.count("step") == 10
    worker.close()


async def test_nothing_of_a_deleted_job_is_left(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    with redis.Redis.from_url(redis_url) as client:
        before = set(client.keys())
        for ends in (False, True):
            await store.submit(a_job(), b"inputs", cancel_after=100, attached=True)
            claim = claimed(worker)
            claim.put_artifact("0.png", "image/png", b"png")
            claim.event("preview", {"n": 1})
            await store.watch(claim.job.id, 1)
            if ends:
                claim.succeed({})
            await store.delete(claim.job.id)
            assert worker.renew([claim]) == ["lost"]
            client.delete(keys.claim(claim.token))
        assert set(client.keys()) - {keys.COUNTS.encode()} == before


async def test_a_deleted_job_ends_its_stream(store: JobStore, worker: WorkerStore):
    job = (await store.submit(a_job())).id
    async with asyncio.timeout(LIMIT):
        seen = []
        async for event in store.follow(job, FROM_THE_START, idle=0.1):
            seen.append(event and event.type)
            await store.delete(job)
    assert seen == ["queued"]


# Pages


async def test_jobs_are_listed_by_owner_newest_first_in_pages(store: JobStore, worker: WorkerStore):
    jobs = [await store.submit(a_job(owner="anna")) for _ in range(5)]
    await store.submit(a_job(owner="bela"))
    newest = [job.id for job in reversed(jobs)]
    found, after = [], None
    for expected in (2, 2, 1):
        page = await store.page("anna", 2, after)
        assert len(page.jobs) == expected
        found += [job.id for job in page.jobs]
        after = page.following
    assert found == newest
    assert after is None
    await store.cancel(jobs[1].id)
    canceled = await store.page("anna", 2, None, Status.CANCELED)
    assert [job.id for job in canceled.jobs] == [jobs[1].id]


async def test_expired_jobs_leave_the_list(store: JobStore, redis_url: str):
    jobs = [await store.submit(a_job(owner="anna")) for _ in range(3)]
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys.job(jobs[0].id))
        client.delete(keys.job(jobs[1].id))
        assert [job.id for job in (await store.page("anna", 2)).jobs] == [jobs[2].id]
        assert client.zcard(keys.owned("anna")) == 1
        client.delete(keys.job(jobs[2].id))
        await store.submit(a_job(owner="anna"))
        assert client.zcard(keys.owned("anna")) == 1, "the list forgets as it grows"

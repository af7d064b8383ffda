"""Streams on the POST itself, and the jobs that are abandoned with them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from httpx_sse import EventSource, aconnect_sse

from service.api import create_app
from service.api.server import Server
from service.jobs.job import Status
from service.jobs.lease import Claim, WorkerStore
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.helpers import CARDS, LIMIT, ROOMS, until

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


async def others_are_canceled(client: httpx.AsyncClient, store: JobStore) -> None:
    """Wait until a job that is abandoned only now is canceled: so would one that was before."""
    async with posted(client) as reader:
        await reader.kind()
        job = reader.job
    await becomes(store, job, Status.CANCELED)


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
            await others_are_canceled(client, store)
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
        await others_are_canceled(client, store)
        assert await status_of(store, job) is Status.QUEUED


async def test_who_prefers_it_may_leave(settings: Settings, store: JobStore, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        async with posted(client, Prefer="respond-async") as reader:
            await reader.kind()
            job = reader.job
        await others_are_canceled(client, store)
        assert await status_of(store, job) is Status.QUEUED


async def test_readers_of_a_job_that_was_only_queued_may_leave(
    settings: Settings, store: JobStore, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with running(settings) as (client, _):
        job = (await client.post("/generate", json=BODY)).json()["id"]
        async with following(client, job) as reader:
            await reader.kind()
        await others_are_canceled(client, store)
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
    async with running(settings) as (client, _):  # another one, which looks after abandoned jobs
        await others_are_canceled(client, store)
        assert await status_of(store, job) is Status.QUEUED

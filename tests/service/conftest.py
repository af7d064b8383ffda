"""A store, a worker's store and an API over the real Redis, with a few models registered."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
import redis

from service.api import create_app
from service.jobs import keys
from service.jobs.lease import Claim, WorkerStore
from service.jobs.parameters import PRIORITIES
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.clients import Blocking, Connect, Looping
from tests.service.helpers import CARDS, LIMIT, ROOMS, until
from tests.service.network import Gate, served


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url, max_count=4, max_body=200_000, max_pixels=10_000, max_wait=2, lease=5
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[JobStore]:
    store = JobStore(settings)
    yield store
    await store.close()


@pytest.fixture
def hints() -> list[str]:
    return []


@pytest.fixture
def worker(settings: Settings, hints: list[str]) -> Iterator[WorkerStore]:
    worker = WorkerStore(settings, "worker-1", hints.append)
    yield worker
    worker.close()


@pytest.fixture
async def client(settings: Settings, worker: WorkerStore) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of an API that knows CARDS, while no worker is alive."""
    worker.announce(CARDS, ttl=60)
    worker.withdraw()
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield client


@pytest.fixture
def queued(redis_url: str) -> Iterator[Callable[[], list[str]]]:
    """`queued()`: the ids of the jobs that wait, in the order in which they are next."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:

        def ids() -> list[str]:
            waiting: list[str] = []
            for priority in PRIORITIES:
                queues = list(client.scan_iter(keys.queue(priority, "*")))
                waiting += client.zunion(queues) if queues else []
            return waiting

        yield ids


@pytest.fixture
def serve_one(
    worker: WorkerStore, queued: Callable[[], list[str]]
) -> Iterator[Callable[[Callable[[Claim], None]], None]]:
    """`serve_one(work)`: claim, in a thread, the next job that waits, and do `work` with it."""
    threads: list[threading.Thread] = []

    def run(work: Callable[[Claim], None]) -> None:
        until(queued)
        claim = worker.claim([card["digest"] for card in CARDS], ROOMS)
        assert claim is not None
        work(claim)

    def start(work: Callable[[Claim], None]) -> None:
        threads.append(threading.Thread(target=run, args=(work,)))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(LIMIT)


@pytest.fixture
def gate(settings: Settings, worker: WorkerStore) -> Gate:
    """An API that knows CARDS, a live worker to all appearances, and a gate before both."""
    worker.announce(CARDS, ttl=60)
    return Gate(create_app(settings))


@pytest.fixture
def url(gate: Gate) -> Iterator[str]:
    """Where the gate can be reached."""
    with served(gate) as url:
        yield url


@pytest.fixture(params=[Blocking, Looping], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """`connect(url, …)`: a client, called as `client("generate", …)`."""
    with ExitStack() as stack:
        yield partial(request.param, stack)

"""A store, a worker's store and an API over the real Redis, with a few models registered."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest

from service.api import create_app
from service.jobs.lease import Claim, WorkerStore
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.backends import Backend, OverRedis
from tests.service.clients import Blocking, Connect, Looping
from tests.service.helpers import CARDS, LIMIT, ROOMS, until
from tests.service.network import Gate, served


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def frequent_chores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines, abandoned jobs and webhooks are looked after at once, not twice a second."""
    monkeypatch.setattr("service.api.app.CHORES", 0.05)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url, max_count=4, max_body=200_000, max_pixels=10_000, max_wait=2, lease=5
    )


@pytest.fixture
def backend(settings: Settings) -> Backend:
    """Where jobs are; a module that is about every such place overrides it."""
    return OverRedis(settings)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[JobStore]:
    store = backend.store()
    yield store
    await store.close()


@pytest.fixture
def hints() -> list[str]:
    return []


@pytest.fixture
def worker(backend: Backend, hints: list[str]) -> Iterator[WorkerStore]:
    worker = backend.worker("worker-1", hints.append)
    yield worker
    worker.close()


@pytest.fixture
async def client(backend: Backend, worker: WorkerStore) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of an API that knows CARDS, while no worker is alive."""
    worker.announce(CARDS, ttl=60)
    worker.withdraw()
    app = backend.app()
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield client


@pytest.fixture
def queued(backend: Backend) -> Callable[[], list[str]]:
    """`queued()`: the ids of the jobs that wait, in the order in which they are next."""
    return backend.queued


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

"""What a job store promises, asked of each implementation."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.jobs.lease import Claim, WorkerStore
from service.settings import Settings
from tests.service.backends import BACKENDS, Backend
from tests.service.helpers import ROOMS

SHORT = 0.1
"""A lease, in seconds."""

MakeWorker = Callable[..., WorkerStore]
Claimed = Callable[..., Claim]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, settings: Settings) -> Backend:
    return BACKENDS[request.param](settings)


@pytest.fixture
def make_worker(backend: Backend, hints: list[str]) -> Iterator[MakeWorker]:
    """`make_worker(name, lease=…)`: one more worker of the same store."""
    made: list[WorkerStore] = []

    def make(name: str, **changes: Any) -> WorkerStore:
        made.append(backend.worker(name, hints.append, **changes))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def quick(backend: Backend, make_worker: MakeWorker) -> WorkerStore:
    """A worker whose leases are short, of a store that reaps them."""
    backend.wait_until_reaped(SHORT)
    return make_worker("quick", lease=SHORT)


@pytest.fixture
def claim(worker: WorkerStore) -> Claimed:
    """`claim(by=worker)`: the next job, which must be there."""

    def next_of(by: WorkerStore = worker) -> Claim:
        claim = by.claim(["sha256:digits"], ROOMS)
        assert claim is not None
        return claim

    return next_of

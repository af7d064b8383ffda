"""A worker's parts over the real Redis, with an exact model in place of a trained one."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from model import checkpoint as checkpoints
from model.analytic import GaussianMixture
from model.checkpoint import Description
from model.data import DataSpec
from model.process import VPLinear
from service.jobs.arrays import unpack
from service.jobs.job import Job, new_job_id
from service.jobs.lease import Claim, WorkerStore
from service.jobs.parameters import PRIORITIES, Priority
from service.jobs.redis_store import RedisJobStore, RedisWorkerStore, keys
from service.jobs.redis_store.hashes import job_of
from service.settings import Settings
from tests.laws.mixture import mixture
from worker.courier import Courier
from worker.engine import Engine
from worker.knee import Curve, Curves
from worker.shelf import ServedModel, Shelf

SHAPE = (1, 4, 4)
KNEE = 64


@pytest.fixture(scope="session")
def network() -> GaussianMixture:
    return mixture(components=3, shape=SHAPE, variance=0.04)


@pytest.fixture(scope="session")
def models(network: GaussianMixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint, `mixture`: three classes, 256 levels."""
    folder = tmp_path_factory.mktemp("models")
    description = Description(
        architecture=network.config,
        process=VPLinear(t_min=1e-3),
        data=DataSpec(shape=SHAPE, levels=256, class_names=("a", "b", "c")),
    )
    checkpoints.save(folder / "mixture.safetensors", description, network.state_dict())
    return folder


@pytest.fixture(scope="session")
def shelf(models: Path) -> Shelf:
    """The model's curve is one that no other work on the machine can disturb."""
    curve = Curve((1, 16, KNEE), (0.001, 0.004, 0.008), gradient_seconds=0.05)
    return Shelf(models, torch.device("cpu"), curves=Curves(measure=lambda *_: curve))


@pytest.fixture(scope="session")
def served(shelf: Shelf) -> ServedModel:
    """The loaded model."""
    return next(iter(shelf.models.values()))


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, lease=5)


@pytest.fixture
def store(settings: Settings) -> Iterator[WorkerStore]:
    store = RedisWorkerStore(settings, "worker-1", lambda job_id: None)
    yield store
    store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@dataclass
class Stopped:
    """An engine whose ticks the test makes itself, with its courier running."""

    engine: Engine
    courier: Courier
    client: redis.Redis
    url: str

    def admit(self, claim: Claim) -> None:
        """Admit a job, as a worker's task does."""
        self.engine.admit(claim, claim.inputs())

    def run(self, *claims: Claim) -> None:
        """Admit the jobs and tick until none is left, then wait for their deliveries."""
        for claim in claims:
            self.admit(claim)
        while self.engine.claims():
            self.engine.tick()
        self.delivered()

    def delivered(self) -> None:
        """Wait until the courier has carried what was sent so far."""
        done = threading.Event()
        self.courier.send(object(), done.set)  # type: ignore[arg-type]
        assert done.wait(10)

    def job(self, claim: Claim) -> Job:
        """The job as Redis has it."""
        return job_of(
            {k.encode(): v.encode() for k, v in self.client.hgetall(keys.job(claim.job.id)).items()}
        )

    def artifact(self, claim: Claim, name: str) -> bytes:
        """The bytes of a job's artifact."""
        key = keys.artifact(claim.job.id, name)
        with redis.Redis.from_url(self.url) as raw:
            found: bytes = raw.get(key)
        return found

    def events(self, claim: Claim) -> list[tuple[str, dict[str, Any]]]:
        """A job's events so far: type and data."""
        entries = self.client.xrange(keys.events(claim.job.id))
        return [(fields["type"], json.loads(fields["data"])) for _, fields in entries]


@pytest.fixture
def stopped(
    shelf: Shelf, served: ServedModel, client: redis.Redis, redis_url: str
) -> Iterator[Stopped]:
    courier = Courier()
    courier.start()
    shelf.cores.begin()  # as the engine's own thread does, whatever a test before has set
    yield Stopped(Engine(shelf, courier), courier, client, redis_url)
    shelf.cores.end()
    courier.stop(5)


def rows_of(inputs: bytes | None, parameters: dict[str, Any]) -> int:
    """The rows that the API gives a job, also where the parameters are wrong."""
    if inputs is None:
        return int(parameters.get("count", 1))
    images = len(next(iter(unpack(inputs)[0].values())))
    return images * int((parameters.get("dequantization") or {}).get("samples", 1))


@pytest.fixture
def claimed(settings: Settings, store: WorkerStore, served: ServedModel) -> Callable[..., Claim]:
    """`claimed(operation, inputs=…, **parameters)`: a job submitted and claimed."""
    return claiming(settings, store, served)


def claiming(settings: Settings, store: WorkerStore, served: ServedModel) -> Callable[..., Claim]:
    """Submits and claims jobs for a model."""

    async def submit(job: Job, inputs: bytes | None, cancel_after: float | None) -> None:
        jobs = RedisJobStore(settings)
        await jobs.submit(job, inputs, cancel_after=cancel_after)
        await jobs.close()

    def claim(
        operation: str,
        inputs: bytes | None = None,
        priority: Priority = "interactive",
        cancel_after: float | None = None,
        **parameters: Any,
    ) -> Claim:
        job = Job(
            id=new_job_id(),
            operation=operation,
            model=served.name,
            digest=served.checkpoint.digest,
            parameters={"model": served.name, "priority": priority} | parameters,
            priority=priority,
            rows=rows_of(inputs, parameters),
        )
        asyncio.run(submit(job, inputs, cancel_after))
        found = store.claim([job.digest], dict.fromkeys(PRIORITIES, 1))
        assert found is not None
        assert found.job.id == job.id
        return found

    return claim

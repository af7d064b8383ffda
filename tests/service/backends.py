"""Both implementations of the job store, made and looked into alike."""

from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

import redis
from fastapi import FastAPI

from service.api import create_app
from service.jobs.lease import WorkerStore
from service.jobs.memory_store import Memory, MemoryJobStore, MemoryWorkerStore
from service.jobs.parameters import PRIORITIES
from service.jobs.redis_store import RedisJobStore, RedisWorkerStore, keys
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.helpers import until

Hint = Callable[[str], None]


class Backend(Protocol):
    """A place for jobs. `changes` are of its settings."""

    def store(self, **changes: Any) -> JobStore: ...

    def worker(self, name: str, hint: Hint, **changes: Any) -> WorkerStore: ...

    def app(self, **changes: Any) -> FastAPI: ...

    def queued(self) -> list[str]:
        """The ids of the jobs that wait, in the order in which they are next."""

    def wait_until_reaped(self, lease: float) -> None:
        """Wait until leases that end are noticed."""


class OverRedis:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def store(self, **changes: Any) -> JobStore:
        return RedisJobStore(self.settings.model_copy(update=changes))

    def worker(self, name: str, hint: Hint, **changes: Any) -> WorkerStore:
        return RedisWorkerStore(self.settings.model_copy(update=changes), name, hint)

    def app(self, **changes: Any) -> FastAPI:
        return create_app(self.settings.model_copy(update=changes))

    def queued(self) -> list[str]:
        waiting: list[str] = []
        with redis.Redis.from_url(self.settings.require_redis(), decode_responses=True) as client:
            for priority in PRIORITIES:
                queues = list(client.scan_iter(keys.queue(priority, "*")))
                waiting += client.zunion(queues) if queues else []
        return waiting

    def wait_until_reaped(self, lease: float) -> None:
        with redis.Redis.from_url(self.settings.require_redis()) as client:
            until(lambda: client.info("server")["uptime_in_seconds"] > lease)


class InMemory:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update={"redis_url": None})
        self.memory = Memory()

    def store(self, **changes: Any) -> JobStore:
        return MemoryJobStore(self.settings.model_copy(update=changes), self.memory)

    def worker(self, name: str, hint: Hint, **changes: Any) -> WorkerStore:
        settings = self.settings.model_copy(update=changes)
        return MemoryWorkerStore(settings, name, hint, self.memory)

    def app(self, **changes: Any) -> FastAPI:
        return create_app(self.settings.model_copy(update=changes), self.store(**changes))

    def queued(self) -> list[str]:
        queues = self.memory.queues
        lines = ([q for (p, _), q in queues.items() if p == priority] for priority in PRIORITIES)
        return [job_id for line in lines for _, job_id in sorted(chain(*line))]

    def wait_until_reaped(self, lease: float) -> None:
        pass


BACKENDS = {"redis": OverRedis, "memory": InMemory}

"""What the routes share, made once in the application's lifespan.

All dependencies are coroutines, also those that wait for nothing: FastAPI runs any other function
in a thread, which takes longer than they do.
"""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.api.auth import Gate, Signer
from service.api.cards import Card
from service.api.figures import ApiMetrics
from service.api.problems import not_found
from service.api.rates import Rates
from service.api.waker import Waker
from service.jobs.job import Job
from service.jobs.recent import Recent
from service.jobs.store import JobStore
from service.settings import Settings


@dataclass
class State:
    """What the process finds out as it runs.

    memory_low: Redis is short of memory. stopping: the server goes down, so that streams which
    break off now say nothing about their readers.
    """

    memory_low: bool = False
    stopping: bool = False


@dataclass(frozen=True)
class Services:
    """The parts that a request is answered with."""

    settings: Settings
    store: JobStore
    cards: Recent[dict[str, Card]]  # by name
    waker: Waker
    gate: Gate
    signer: Signer
    rates: Rates
    metrics: ApiMetrics
    state: State


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


async def _store(services: ServicesDep) -> JobStore:
    return services.store


StoreDep = Annotated[JobStore, Depends(_store)]


async def _owner(request: Request, services: ServicesDep) -> str:
    return services.gate.owner_of(request)


OwnerDep = Annotated[str, Depends(_owner)]
"""Whose key the request has; 401 without one where keys are asked for."""


async def _find(job_id: str, store: JobStore, owner: str | None) -> Job:
    job = await store.get(job_id)
    # Another's job is answered as one that never was.
    if job is None or owner not in (None, job.owner):
        raise not_found(f"no job {job_id}; it never was, or it has expired")
    return job


async def _job(job_id: str, owner: OwnerDep, store: StoreDep) -> Job:
    return await _find(job_id, store, owner)


JobDep = Annotated[Job, Depends(_job)]
"""A job of the owner's; 404 for any other."""


async def _readable_job(job_id: str, request: Request, services: ServicesDep) -> Job:
    return await _find(job_id, services.store, await services.gate.owner_or_signed(request))


ReadableJobDep = Annotated[Job, Depends(_readable_job)]
"""The same, or the job of a signed URL."""

"""What the routes share, made once in the application's lifespan."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from service.api.problems import not_found
from service.jobs.hints import Hinter
from service.jobs.job import Job
from service.jobs.store import JobStore
from service.settings import Settings


@dataclass(frozen=True)
class Services:
    """The parts that a request is answered with."""

    settings: Settings
    store: JobStore
    hinter: Hinter


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


def _store(services: ServicesDep) -> JobStore:
    return services.store


StoreDep = Annotated[JobStore, Depends(_store)]


async def _job(job_id: str, store: StoreDep) -> Job:
    job = await store.get(job_id)
    if job is None:
        raise not_found(f"no job {job_id}; it never was, or it has expired")
    return job


JobDep = Annotated[Job, Depends(_job)]

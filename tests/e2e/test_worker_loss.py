"""What clients see when a worker is lost, a hint is lost, or another worker comes."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.jobs.job import Job, new_job_id
from service.jobs.redis_store import RedisJobStore
from service.settings import Settings
from tests.e2e.running import Part, Service, wait_until

SHORT = {"model": "digits", "count": 1, "seed": 5, "sampler": {"name": "ddim", "steps": 10}}
LONG = {"model": "digits", "count": 64, "seed": 6, "sampler": {"name": "ddpm", "steps": 2000}}


@pytest.mark.timeout(300)
def test_jobs_wait_for_a_worker_to_return(
    own_service: tuple[Service, Callable[..., Part]],
) -> None:
    service, start_worker = own_service
    worker = start_worker()
    service.succeeded(service.submit("/generate", SHORT))
    worker.kill_group()
    wait_until(lambda: service.ready() == 503, "/readyz to turn 503", limit=20)
    assert service.client.get("/healthz").status_code == 200

    waiting = service.submit("/generate", SHORT)
    assert service.get(waiting)["status"] == "queued"
    assert service.client.get("/models").json()["models"][0]["live"] is False

    start_worker()
    assert service.ready() == 200
    assert service.succeeded(waiting)["attempt"] == 1


@pytest.mark.timeout(300)
def test_a_job_of_a_lost_worker_is_tried_again(
    own_service: tuple[Service, Callable[..., Part]],
) -> None:
    service, start_worker = own_service
    worker = start_worker()
    job = service.submit(
        "/generate", LONG | {"count": 16, "sampler": {"name": "ddpm", "steps": 200}}
    )
    wait_until(lambda: service.get(job)["status"] == "running", "the job to run", limit=20)
    worker.kill_group()
    start_worker()
    assert service.succeeded(job)["attempt"] == 2
    kinds = [event.event for event in service.events(job)]
    assert kinds.count("retrying") == 1
    assert kinds.count("succeeded") == 1


def store_without_a_hint(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    """A queued job as it stands when the one hint at it was swallowed."""
    digest = service.client.get("/models/digits").raise_for_status().json()["digest"]
    job = Job(
        id=new_job_id(),
        operation="generate",
        model="digits",
        digest=digest,
        parameters=request,
        rows=request["count"],
    )

    async def submit() -> None:
        store = RedisJobStore(Settings(redis_url=service.redis_url))
        await store.submit(job)
        await store.close()

    asyncio.run(submit())
    return service.client.get(f"/jobs/{job.id}").raise_for_status().json()


@pytest.mark.timeout(300)
def test_a_job_whose_hint_was_swallowed_starts_within_a_second(
    own_service: tuple[Service, Callable[..., Part]],
) -> None:
    service, start_worker = own_service
    start_worker()
    service.succeeded(service.submit("/generate", SHORT))  # the first job of a process is slow
    job = service.succeeded(store_without_a_hint(service, SHORT))
    assert job["started"] - job["created"] < 1.0


@pytest.mark.timeout(300)
def test_a_second_worker_takes_what_the_first_has_no_room_for(
    own_service: tuple[Service, Callable[..., Part]],
) -> None:
    service, start_worker = own_service
    start_worker(FOKKER_ENGINE_JOBS="1")
    jobs = [service.submit("/generate", LONG | {"seed": 1})]
    wait_until(lambda: service.get(jobs[0])["status"] == "running", "the first worker")
    jobs.append(service.submit("/generate", LONG | {"seed": 2}))
    assert service.get(jobs[1])["status"] == "queued"
    start_worker(FOKKER_ENGINE_JOBS="1")
    wait_until(lambda: service.get(jobs[1])["status"] == "running", "the second worker")
    workers = set()
    for job in jobs:
        started = next(event for event in service.events(job) if event.event == "started")
        workers.add(started.json()["worker"])
        service.client.post(job["links"]["cancel"]).raise_for_status()
    assert len(workers) == 2

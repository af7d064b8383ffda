"""`/jobs`: their states, their events as they happen, their artifacts, and how to end them."""

import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from service.api.dependencies import JobDep, OwnerDep, ReadableJobDep, ServicesDep, StoreDep
from service.api.problems import FieldError, did_you_mean, invalid, not_found
from service.api.schemas import Jobs, JobView, problem_responses
from service.api.streams import stream
from service.api.views import view_of
from service.jobs.events import FROM_THE_START, follows
from service.jobs.job import Status

EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")

router = APIRouter(prefix="/jobs", tags=["jobs"])
REFUSED = {"s401": "No or an unknown API key", "s503": "The job store is away"}
NO_JOB = problem_responses(s404="No such job", **REFUSED)
READABLE = NO_JOB | problem_responses(s403="A signature that is wrong or over")
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
    204: {"description": "Nothing follows `Last-Event-ID`: the job has ended"},
}


@router.get("", responses=problem_responses(s422="Invalid; names the field", **REFUSED))
async def jobs(
    owner: OwnerDep,
    services: ServicesDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None,
        Query(pattern=r"^[0-9]{1,16}\.[0-9]{6}$", description="`next` of the page before"),
    ] = None,
    status: Annotated[Status | None, Query(description="Only jobs that stand there")] = None,
) -> Jobs:
    """List the jobs of the key's owner, newest first."""
    page = await services.store.page(owner, limit, cursor, status)
    views = [await view_of(services, job, request) for job in page.jobs]
    return Jobs(jobs=views, next=page.following)


@router.get("/{job_id}", responses=NO_JOB)
async def job(job: JobDep, services: ServicesDep, request: Request) -> JobView:
    """Give a job's state."""
    return await view_of(services, job, request)


@router.delete("/{job_id}", responses=NO_JOB, status_code=HTTPStatus.NO_CONTENT)
async def delete(job: JobDep, store: StoreDep) -> None:
    """Remove a job with its events and artifacts, whatever it is doing."""
    await store.delete(job.id)


@router.post("/{job_id}/cancel", responses=NO_JOB)
async def cancel(job: JobDep, services: ServicesDep, request: Request) -> JobView:
    """Cancel a job: a queued one ends at once, a running one soon; a finished one stays."""
    return await view_of(services, await services.store.cancel(job.id) or job, request)


@router.get("/{job_id}/artifacts/{name}", responses=READABLE, response_class=Response)
async def artifact(job: ReadableJobDep, name: str, store: StoreDep) -> Response:
    """Give one artifact: an image, latents, an array."""
    found = await store.artifact(job.id, name)
    if found is None:
        known = did_you_mean(name, sorted(job.artifacts)) if job.artifacts else "it has none"
        raise not_found(f'the job, which is {job.status}, has no artifact "{name}"; {known}')
    media_type, data = found
    return Response(data, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


@router.get("/{job_id}/events", responses=STREAM | READABLE, response_class=Response)
async def events(
    job: ReadableJobDep,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream a job's events, from the start or from after `Last-Event-ID`, to its end."""
    after = last_event_id or FROM_THE_START
    if not EVENT_ID.fullmatch(after):
        detail = "not an id of this stream; send the last `id` received, or leave it out"
        raise invalid(FieldError("Last-Event-ID", detail, after))
    if job.last_event and not follows(job.last_event, after):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return stream(services, job.id, after)

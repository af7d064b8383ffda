"""`/jobs`: their states, their events as they happen, their artifacts, and how to end them."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, field_validator

from service.api.dependencies import JobDep, OwnerDep, ReadableJobDep, ServicesDep, StoreDep
from service.api.problems import FieldError, Problem, did_you_mean, invalid, not_found
from service.api.schemas import REFUSED, Jobs, JobView, problem_responses
from service.api.streams import stream
from service.api.views import view_of
from service.jobs.events import FROM_THE_START, follows
from service.jobs.job import Status

EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
CURSOR = re.compile(r"^[0-9]{1,16}\.[0-9]{6}$")

router = APIRouter(prefix="/jobs", tags=["jobs"])
NO_JOB = problem_responses(s404="No such job", **REFUSED)
READABLE = NO_JOB | problem_responses(s403="A signature that is wrong or over")
GONE = problem_responses(s410="The artifact is no longer kept")
STREAM: dict[int | str, dict[str, Any]] = READABLE | problem_responses(s422="Not an event's id")
STREAM |= {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
    204: {"description": "Nothing follows `Last-Event-ID`: the job has ended"},
}


class Listing(BaseModel):
    """Which jobs are listed."""

    limit: int = Field(default=50, ge=1, le=200)
    cursor: str | None = Field(
        default=None,
        description="`next` of the page before",
        json_schema_extra={"pattern": CURSOR.pattern},
    )
    status: Status | None = Field(default=None, description="Only jobs that stand there")

    @field_validator("cursor")
    @classmethod
    def _is_ours(cls, cursor: str | None) -> str | None:
        if cursor is not None and not CURSOR.fullmatch(cursor):
            raise ValueError("no cursor; send `next` of the page before as it is, or leave it out")
        return cursor


def _refuse_unknown(given: Iterable[str]) -> None:
    """A misspelt parameter would otherwise list other jobs than were asked for."""
    unknown = sorted(set(given) - set(Listing.model_fields))
    if unknown:
        known = sorted(Listing.model_fields)
        details = (f"no such parameter here; {did_you_mean(name, known)}" for name in unknown)
        raise invalid(*map(FieldError, unknown, details))


@router.get("", responses=problem_responses(s422="Invalid; names the parameter", **REFUSED))
async def jobs(
    owner: OwnerDep,
    services: ServicesDep,
    request: Request,
    asked: Annotated[Listing, Query()],
) -> Jobs:
    """List the jobs of the key's owner, newest first."""
    _refuse_unknown(request.query_params)
    page = await services.store.page(owner, asked.limit, asked.cursor, asked.status)
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


@router.get("/{job_id}/artifacts/{name}", responses=READABLE | GONE, response_class=Response)
async def artifact(job: ReadableJobDep, name: str, store: StoreDep) -> Response:
    """Give one artifact: an image, latents, an array."""
    found = await store.artifact(job.id, name)
    if found is None and name in job.artifacts:
        raise Problem(HTTPStatus.GONE, f'the artifact "{name}" is no longer kept')
    if found is None:
        known = did_you_mean(name, sorted(job.artifacts)) if job.artifacts else "it has none"
        raise not_found(f'the job, which is {job.status}, has no artifact "{name}"; {known}')
    media_type, content = found
    headers = {"X-Content-Type-Options": "nosniff", "Content-Length": str(content.size)}
    return StreamingResponse(content.chunks, media_type=media_type, headers=headers)


@router.get(
    "/{job_id}/events",
    responses=STREAM | READABLE | problem_responses(s422="Not an event's id"),
    response_class=Response,
)
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

"""`/jobs/{id}`: a job's state, its events as they happen, its artifacts, and its cancellation."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from service.api.dependencies import JobDep, StoreDep
from service.api.problems import FieldError, did_you_mean, invalid, not_found
from service.api.schemas import JobView, problem_responses
from service.jobs.store import BLOCK, FROM_THE_START, JobStore, follows

PING = BLOCK  # seconds between signs of life on a quiet stream
EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])
NO_JOB = problem_responses(s404="No such job", s503="The job store is away")
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
    204: {"description": "Nothing follows `Last-Event-ID`: the job has ended"},
}


@router.get("", responses=NO_JOB)
async def job(job: JobDep, request: Request) -> JobView:
    """Give a job's state."""
    return JobView.of(job, request.scope.get("root_path", ""))


@router.post("/cancel", responses=NO_JOB)
async def cancel(job: JobDep, store: StoreDep, request: Request) -> JobView:
    """Cancel a job: a queued one ends at once, a running one soon; a finished one stays."""
    return JobView.of(await store.cancel(job.id) or job, request.scope.get("root_path", ""))


@router.get("/artifacts/{name}", responses=NO_JOB, response_class=Response)
async def artifact(job: JobDep, name: str, store: StoreDep) -> Response:
    """Give one artifact: an image, latents, an array."""
    found = await store.artifact(job.id, name)
    if found is None:
        known = did_you_mean(name, sorted(job.artifacts)) if job.artifacts else "it has none"
        raise not_found(f'the job, which is {job.status}, has no artifact "{name}"; {known}')
    media_type, data = found
    return Response(data, media_type=media_type, headers={"X-Content-Type-Options": "nosniff"})


@router.get("/events", responses=STREAM | NO_JOB, response_class=Response)
async def events(
    job: JobDep, store: StoreDep, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Stream a job's events, from the start or from after `Last-Event-ID`, to its end."""
    after = last_event_id or FROM_THE_START
    if not EVENT_ID.fullmatch(after):
        detail = "not an id of this stream; send the last `id` received, or leave it out"
        raise invalid(FieldError("Last-Event-ID", detail, after))
    if job.last_event and not follows(job.last_event, after):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventSourceResponse(
        _stream(store, job.id, after),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _stream(store: JobStore, job_id: str, after: str) -> AsyncIterator[bytes]:
    async with aclosing(store.follow(job_id, after, idle=PING)) as events:
        async for event in events:
            if event is None:
                yield KEEPALIVE_COMMENT
            else:
                yield format_sse_event(id=event.id, event=event.type, data_str=event.data)

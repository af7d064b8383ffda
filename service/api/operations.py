"""`POST /generate`, `/invert`, `/loglik`: check a request, queue its job, maybe wait for it."""

import asyncio
import hashlib
import json
import math
import re
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from structlog.contextvars import bind_contextvars

from service.api.dependencies import OwnerDep, Services, ServicesDep
from service.api.problems import RETRY_AFTER, FieldError, Problem, invalid
from service.api.schemas import (
    InvertRequest,
    JobView,
    LoglikRequest,
    problem_responses,
    request_body,
)
from service.api.streams import PING, stream
from service.api.submission import prepare
from service.api.uploads import Upload, read_upload
from service.api.views import view_of
from service.jobs.events import FROM_THE_START
from service.jobs.job import Job
from service.jobs.parameters import GenerateParameters, InvertParameters, LoglikParameters
from service.jobs.store import (
    JobStore,
    Once,
    OtherContentError,
    QueueFullError,
    QuotaError,
    RefusedError,
)
from service.settings import Settings

router = APIRouter(tags=["operations"])

FILE = {"type": "string", "format": "binary"}
IMAGES = {"image": {"type": "array", "items": FILE, "description": "One part an image."}}
ANSWERS: dict[str, Any] = {
    "status_code": HTTPStatus.ACCEPTED,
    "response_model": JobView,
    "responses": {
        200: {
            "model": JobView,
            "description": "Finished within the `Prefer: wait` asked for; or, with "
            "`Accept: text/event-stream`, the job's events as they happen",
            "content": {"text/event-stream": {}},
        },
        202: {
            "description": "Queued",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The job"}},
        },
        **problem_responses(
            s400="Not JSON, or no multipart body",
            s401="No or an unknown API key",
            s413="Body too large",
            s415="Neither JSON nor multipart",
            s422="Invalid; names the field",
            s429="Over a quota of the key; says when to try again",
            s503="Too many jobs wait, or the job store is away; says when to try again",
        ),
    },
}

DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h)?")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_KEY = 255


@dataclass(frozen=True)
class Asked:
    """What every operation is asked with beside its body."""

    request: Request
    services: Services
    owner: str
    prefer: str | None
    cancel_after: str | None
    idempotency_key: str | None


async def _asked(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=N`: answer the finished job if it is done in N seconds; "
            "`respond-async`: with `Accept: text/event-stream`, the job goes on without a reader"
        ),
    ] = None,
    cancel_after: Annotated[
        str | None,
        Header(
            description="The job's deadline from now, e.g. `90s`, `500ms`, `15m`, `2h`: a job that "
            "has not started by then is aborted, one that has not ended is canceled",
            json_schema_extra={"pattern": f"^{DURATION.pattern}$"},
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A name that you give this request: sent again with the same content it "
            "gives the same job, with other content 422",
            json_schema_extra={"minLength": 1, "maxLength": LONGEST_KEY},
        ),
    ] = None,
) -> Asked:
    """What the three routes depend on."""
    return Asked(request, services, owner, prefer, cancel_after, idempotency_key)


AskedDep = Annotated[Asked, Depends(_asked)]


@router.post(
    "/generate",
    openapi_extra=request_body(
        GenerateParameters,
        GenerateParameters,
        {"latents": FILE | {"description": "safetensors file with an array `latents`, or .npy"}},
        {"model": "digits", "count": 4, "seed": 7, "sampler": {"name": "ddpm", "steps": 250}},
    ),
    **ANSWERS,
)
async def generate(asked: AskedDep) -> Response:
    """Draw images from a model, or decode latents."""
    return await _submit(asked, "generate")


@router.post(
    "/invert",
    openapi_extra=request_body(InvertRequest, InvertParameters, IMAGES, {}),
    **ANSWERS,
)
async def invert(asked: AskedDep) -> Response:
    """Encode images into their latents by the probability-flow ODE."""
    return await _submit(asked, "invert")


@router.post(
    "/loglik",
    openapi_extra=request_body(LoglikRequest, LoglikParameters, IMAGES, {}),
    **ANSWERS,
)
async def loglik(asked: AskedDep) -> Response:
    """Give the log-likelihood of images, in nats and bits per dimension."""
    return await _submit(asked, "loglik")


async def _submit(asked: Asked, operation: str) -> Response:
    request, services, owner = asked.request, asked.services, asked.owner
    settings, store = services.settings, services.store
    seconds = None if asked.cancel_after is None else duration(asked.cancel_after)
    if services.state.memory_low:
        raise busy("the job store is short of memory", RETRY_AFTER)
    await services.rates.count(owner)
    # One more file than images, so that one image too many is counted and named.
    upload = await read_upload(request, settings.max_body, settings.max_count + 3)
    prepared = await prepare(services, owner, operation, upload)
    streamed = "text/event-stream" in request.headers.get("accept", "")
    detached = "respond-async" in preferences(asked.prefer)
    try:
        job = await store.submit(
            prepared.job,
            prepared.inputs,
            cancel_after=seconds,
            once=_once(asked, upload),
            attached=streamed and not detached,
        )
    except RefusedError as refused:
        raise await _refusal(store, prepared.job, settings, refused) from refused
    bind_contextvars(job_id=job.id)  # of this request's task: its access line names the job, too
    services.waker.wake(job.id)
    headers = {"Location": f"{request.scope.get('root_path', '')}/jobs/{job.id}"}
    if streamed:
        return stream(services, job.id, FROM_THE_START, headers)
    if (wait := preferred_wait(asked.prefer)) is not None:
        wait = min(wait, settings.max_wait)
        job = await _wait(store, job, wait)
        headers["Preference-Applied"] = f"wait={wait:g}"
    view = await view_of(services, job, request)
    status = HTTPStatus.OK if job.status.finished else HTTPStatus.ACCEPTED
    return JSONResponse(view.model_dump(mode="json"), status, headers)


def _once(asked: Asked, upload: Upload) -> Once | None:
    """The request's Idempotency-Key with what it asks for: the parts, not how they were sent."""
    key = asked.idempotency_key
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY:
        detail = f"it has {len(key)} characters; send 1 to {LONGEST_KEY}, a UUID for example"
        raise invalid(FieldError("Idempotency-Key", detail))
    content = hashlib.sha256(
        json.dumps([upload.request, asked.cancel_after], sort_keys=True).encode()
    )
    for part in (*upload.images, upload.latents or b""):
        content.update(hashlib.sha256(part).digest())
    return Once(key, content.hexdigest())


async def _refusal(store: JobStore, job: Job, settings: Settings, refused: RefusedError) -> Problem:
    """The answer to a job that the store has refused."""
    match refused:
        case OtherContentError(job_id):
            detail = (
                f"this key was used before, for another request (job {job_id}); "
                "send a new key with a new request"
            )
            return invalid(FieldError("Idempotency-Key", detail))
        case QuotaError(cost):
            assert settings.max_owner_cost is not None
            seconds = await store.seconds_for(job.digest, cost + job.cost - settings.max_owner_cost)
            detail = (
                f"rows × network calls: {cost} unfinished and {job.cost} in this request, at most "
                f"{settings.max_owner_cost} are allowed a key"
            )
            return busy(detail, seconds, HTTPStatus.TOO_MANY_REQUESTS)
        case QueueFullError(jobs):
            seconds = await store.seconds_for(job.digest, job.cost)
            return busy(f"{jobs} jobs wait already", seconds)
    raise refused


def busy(
    detail: str, seconds: float | None, status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE
) -> Problem:
    """An answer that says when to try again; seconds: None where nobody can tell."""
    wait = RETRY_AFTER if seconds is None else max(1, math.ceil(seconds))
    return Problem(
        status, f"{detail}; try again in {wait} seconds", headers={"Retry-After": str(wait)}
    )


def preferences(prefer: str | None) -> dict[str, str]:
    """The preferences of a `Prefer` header by name (RFC 7240)."""
    found: dict[str, str] = {}
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def preferred_wait(prefer: str | None) -> float | None:
    """N of `Prefer: wait=N`; None if absent or unusable, which the RFC ignores."""
    value = preferences(prefer).get("wait", "")
    return float(value) if value.isdecimal() else None


def duration(text: str) -> float:
    """Seconds of a `Cancel-After`; 422 for what is none."""
    match = DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * UNITS[match[2] or "s"] if match else 0.0
    if seconds <= 0.0:
        detail = "not a duration above 0; write a number with ms, s, m or h, for example 90s"
        raise invalid(FieldError("Cancel-After", detail, text))
    return seconds


async def _wait(store: JobStore, job: Job, seconds: float) -> Job:
    """The job when it has finished, or as it stands after `seconds`."""
    # A server that shuts down cancels who waits: the job goes on, and so its state is the answer.
    with suppress(asyncio.CancelledError), anyio.move_on_after(seconds):
        async with aclosing(store.follow(job.id, FROM_THE_START, idle=PING)) as events:
            async for _ in events:
                pass
    return await store.get(job.id) or job

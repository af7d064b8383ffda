"""`POST /generate`, `/invert`, `/loglik`: check a request, queue its job, maybe wait for it."""

import asyncio
import logging
import re
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError

from service.api.dependencies import Services, ServicesDep
from service.api.problems import FieldError, invalid
from service.api.schemas import (
    InvertRequest,
    JobView,
    LoglikRequest,
    problem_responses,
    request_body,
)
from service.api.submission import prepare
from service.api.uploads import read_upload
from service.jobs.job import Job
from service.jobs.parameters import GenerateParameters, InvertParameters, LoglikParameters
from service.jobs.store import BLOCK, FROM_THE_START, JobStore

router = APIRouter(tags=["operations"])
log = logging.getLogger(__name__)

FILE = {"type": "string", "format": "binary"}
IMAGES = {"image": {"type": "array", "items": FILE, "description": "One part an image."}}
ANSWERS: dict[str, Any] = {
    "status_code": HTTPStatus.ACCEPTED,
    "response_model": JobView,
    "responses": {
        200: {"model": JobView, "description": "Finished within the `Prefer: wait` asked for"},
        202: {
            "description": "Queued",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The job"}},
        },
        **problem_responses(
            s400="Not JSON, or no multipart body",
            s413="Body too large",
            s415="Neither JSON nor multipart",
            s422="Invalid; names the field",
            s503="The job store is away",
        ),
    },
}

Prefer = Annotated[
    str | None, Header(description="`wait=N`: answer the finished job if it is done in N seconds")
]

CancelAfter = Annotated[
    str | None,
    Header(
        description="The job's deadline from now, e.g. `90s`, `500ms`, `15m`, `2h`: a job that has "
        "not started by then is aborted, one that has not ended is canceled"
    ),
]
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h)?")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


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
async def generate(
    request: Request, services: ServicesDep, prefer: Prefer = None, cancel_after: CancelAfter = None
) -> JSONResponse:
    """Draw images from a model, or decode latents."""
    return await _submit(request, services, "generate", prefer, cancel_after)


@router.post(
    "/invert",
    openapi_extra=request_body(InvertRequest, InvertParameters, IMAGES, {}),
    **ANSWERS,
)
async def invert(
    request: Request, services: ServicesDep, prefer: Prefer = None, cancel_after: CancelAfter = None
) -> JSONResponse:
    """Encode images into their latents by the probability-flow ODE."""
    return await _submit(request, services, "invert", prefer, cancel_after)


@router.post(
    "/loglik",
    openapi_extra=request_body(LoglikRequest, LoglikParameters, IMAGES, {}),
    **ANSWERS,
)
async def loglik(
    request: Request, services: ServicesDep, prefer: Prefer = None, cancel_after: CancelAfter = None
) -> JSONResponse:
    """Give the log-likelihood of images, in nats and bits per dimension."""
    return await _submit(request, services, "loglik", prefer, cancel_after)


async def _submit(
    request: Request,
    services: Services,
    operation: str,
    prefer: str | None,
    cancel_after: str | None,
) -> JSONResponse:
    settings, store = services.settings, services.store
    seconds = None if cancel_after is None else duration(cancel_after)
    # One more file than images, so that one image too many is counted and named.
    upload = await read_upload(request, settings.max_body, settings.max_count + 3)
    prepared = await prepare(store, settings, operation, upload)
    job = await store.submit(prepared.job, prepared.inputs, seconds)
    await _hint(services, job)
    headers = {}
    if (wait := preferred_wait(prefer)) is not None:
        wait = min(wait, settings.max_wait)
        job = await _wait(store, job, wait)
        headers["Preference-Applied"] = f"wait={wait:g}"
    view = JobView.of(job, request.scope.get("root_path", ""))
    headers["Location"] = view.links.self
    status = HTTPStatus.OK if job.status.finished else HTTPStatus.ACCEPTED
    return JSONResponse(view.model_dump(mode="json"), status, headers)


async def _hint(services: Services, job: Job) -> None:
    try:
        await anyio.to_thread.run_sync(services.hinter.hint, job.id)
    except OperationalError as error:
        # The job is stored: a worker that has room finds it without a hint, a moment later.
        log.warning("no hint was sent at job %s: %s", job.id, error)


def preferred_wait(prefer: str | None) -> float | None:
    """N of `Prefer: wait=N` (RFC 7240); None if absent or unusable, which the RFC ignores."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isdecimal():
            return float(value)
    return None


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
        async with aclosing(store.follow(job.id, FROM_THE_START, idle=BLOCK)) as events:
            async for _ in events:
                pass
    return await store.get(job.id) or job

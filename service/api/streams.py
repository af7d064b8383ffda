"""A job's events as server-sent events, and the count of those who follow them."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import anyio
from fastapi import Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from service.api.dependencies import Services
from service.jobs.errors import StoreError
from service.jobs.events import GAP

PING = 15.0  # seconds between signs of life on a quiet stream


def stream(
    services: Services, job_id: str, after: str, headers: dict[str, str] | None = None
) -> Response:
    """The events of a job after an event's id, to the job's end."""
    return EventSourceResponse(
        _events(services, job_id, after),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})},
    )


async def _events(services: Services, job_id: str, after: str) -> AsyncIterator[bytes]:
    async with (
        _subscribed(services, job_id),
        aclosing(services.store.follow(job_id, after, idle=PING)) as events,
    ):
        async for event in events:
            if event is None:
                yield KEEPALIVE_COMMENT
            else:
                # A gap has no place in the stream to go on from.
                place: dict[str, Any] = {} if event.type == GAP else {"id": event.id}
                yield format_sse_event(event=event.type, data_str=event.data, **place)


@asynccontextmanager
async def _subscribed(services: Services, job_id: str) -> AsyncIterator[None]:
    """Count as a follower. Who is cut off because the server stops still counts as one."""
    # Who leaves while the count is on its way has been counted, and must be counted out.
    with anyio.CancelScope(shield=True):
        await services.store.watch(job_id, 1)
    try:
        with services.metrics.streams_open.track_inprogress():
            yield
    finally:
        if not services.state.stopping:
            # In a task that is canceled, and must say so all the same. If the store is away,
            # nothing is said: a job too many runs to its end.
            with anyio.CancelScope(shield=True), suppress(StoreError):
                await services.store.watch(job_id, -1)

"""A job's events: what they hold, and how their stream is picked up where it broke off."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import ServerSentEvent
from PIL import Image

from service.client import calls
from service.client.calls import Call, JobOrId
from service.client.errors import ServiceUnavailable, check
from service.client.results import read_picture
from service.client.retries import Patience
from service.jobs.job import FINISHED

SILENCE = 45.0
"""Seconds without a sign of life (the service gives one every 15) that mean a lost connection."""

HEALTHY = 10.0
"""Seconds that a connection must have held for its loss to be the first one again."""


@dataclass(frozen=True)
class Event:
    """One event of a job; `data` are the JSON values that came with it.

    Types are `queued`, `started`, `step`, `preview`, `retrying` and, as the last one, the status
    that the job ended with.
    """

    id: str
    type: str
    data: Mapping[str, Any]

    @property
    def last(self) -> bool:
        """Whether it ends its job."""
        return self.type in FINISHED

    @property
    def progress(self) -> float | None:
        """How much of the job is done, 0..1; None if the event does not say."""
        return self.data.get("progress")

    def previews(self) -> dict[int, Image.Image]:
        """The images of a preview by their index in the job, decoded here; others have none."""
        shown = self.data.get("images", ()) if self.type == "preview" else ()
        return {image["index"]: read_picture(base64.b64decode(image["png"])) for image in shown}


OnEvent = Callable[[Event], None]
"""What a wait calls with every event, as it comes."""


class Reading:
    """How far the events of a job have been read, over as many connections as it takes."""

    def __init__(self, which: JobOrId, after: str | None, retries: int) -> None:
        self._which = which
        self._after = after
        self._patience = Patience(retries)
        self._opened = time.monotonic()

    def call(self) -> Call:
        """The call that goes on after the last event read."""
        self._opened = time.monotonic()
        return calls.events(self._which, self._after)

    def open(self, call: Call, response: httpx.Response) -> bool:
        """Whether events follow; an error's answer must be read. Raises what `check` raises."""
        return check(call, response).status_code != httpx.codes.NO_CONTENT

    def receive(self, message: ServerSentEvent) -> Event | None:
        """The event of a message; None for a mere sign of life."""
        if not message.data:
            return None
        event = Event(message.id, message.event, json.loads(message.data))
        self._after = event.id or self._after
        self._patience.reset()
        return event

    def pause(self, failure: ServiceUnavailable) -> float:
        """Seconds to wait before the next connection. Raises `failure` when there is to be none."""
        if time.monotonic() - self._opened > HEALTHY:
            self._patience.reset()
        return self._patience.pause(failure)


def broken_off(call: Call) -> ServiceUnavailable:
    """The failure of a stream that ended before its job."""
    return ServiceUnavailable(
        f"{call.path} ended before its job did; the job goes on: wait for it again, by its id"
    )

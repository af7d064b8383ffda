"""A name for every request: in the answer's `X-Request-ID` and in the log lines about it."""

import re
import secrets
from typing import cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.jobs.job import is_job_id

HEADER = "X-Request-ID"
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
OF_A_JOB = re.compile(r"/jobs/([^/]+)")


def request_id_of(scope: Scope) -> str:
    """The id of a request that `RequestIds` has passed on."""
    return cast(str, scope["state"]["request_id"])


def _job_in(scope: Scope) -> dict[str, str]:
    """The id of the job that the path is about, as the log lines about jobs have it."""
    found = OF_A_JOB.match(scope["path"].removeprefix(scope.get("root_path", "")))
    return {"job_id": found[1]} if found and is_job_id(found[1]) else {}


class RequestIds:
    """Middleware that takes over a request's id from its header, or makes one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if GIVEN.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with bound_contextvars(request_id=request_id, **_job_in(scope)):
            await self._app(scope, receive, name)
        return None

"""What nobody foresaw: one log line with the traceback, and a 500 that names the request.

A middleware of ours, since Starlette's answers outside of all others: its 500s have no request id,
are not counted, and a page of another origin cannot read them.
"""

import logging
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import Problem
from service.api.request_ids import request_id_of

log = logging.getLogger(__name__)


class Failures:
    """Middleware that answers an exception with a problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            if begun:
                raise  # only a connection that breaks off tells the client
            log.exception("%s %s failed", scope["method"], scope["path"])
            request_id = request_id_of(scope)
            problem = Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"the service failed on this request; its log has the reason, at {request_id}",
                extra={"request_id": request_id},
            )
            await problem.response(Request(scope))(scope, receive, send)
        return None

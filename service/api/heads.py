"""HEAD: the head of what GET would answer (RFC 9110 §9.3.2), for every path that has a GET."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """Middleware that asks for GET and sends no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def head(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"
                await send(message)
                # Complete with this: a stream of events is told that its reader has left.
                await send({"type": "http.response.body", "body": b""})

        scope.update(method="GET", asked="HEAD")
        try:
            await self._app(scope, receive, head)
        finally:
            scope["method"] = "HEAD"
        return None

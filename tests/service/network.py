"""A service on a real port, a gate before it that notes requests, and a line that can break."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.service.helpers import LIMIT, until


class Attentive(uvicorn.Server):
    """Looks every hundredth of a second, not every tenth, whether it shall stop."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)


@contextmanager
def served(app: ASGIApp, **options: Any) -> Iterator[str]:
    """The address of an application under uvicorn, for what only a real connection shows."""
    given = {"port": 0, "log_level": "warning", "timeout_graceful_shutdown": 1} | options
    server = Attentive(uvicorn.Config(app, **given))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive(), "it would go on looking after the next tests' jobs"


@dataclass(frozen=True)
class Seen:
    """A request that came by, and when (seconds of the loop's clock)."""

    method: str
    path: str
    raw_path: str
    query: str
    headers: Headers
    time: float


@dataclass
class Gate:
    """Before an application: notes every request, and answers the next ones with `answers`."""

    app: ASGIApp
    seen: list[Seen] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] == "http":
            now = asyncio.get_running_loop().time()
            raw = (scope[name].decode() for name in ("raw_path", "query_string"))
            self.seen.append(Seen(scope["method"], scope["path"], *raw, Headers(scope=scope), now))
            if self.answers:
                answer = self.answers.pop(0)
        await answer(scope, receive, send)

    def headers(self, method: str, path: str, name: str) -> list[str | None]:
        """This header of each such request."""
        return [
            request.headers.get(name)
            for request in self.seen
            if (request.method, request.path) == (method, path)
        ]


class Line:
    """A TCP line to a server, which can be cut: both ends then see their connection reset.

    swallowed: how many connections are yet to be cut when the server begins to answer.
    """

    def __init__(self, target: str) -> None:
        self.swallowed = 0
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def cut(self) -> None:
        """Reset every connection."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Cut it for good."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(LIMIT)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink, far)).start()

    def _carry(self, source: socket.socket, sink: socket.socket, server: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if source is server and self.swallowed:
                    self.swallowed -= 1
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(target: str) -> Iterator[Line]:
    """A line to the server at an address, until the block ends."""
    line = Line(target)
    try:
        yield line
    finally:
        line.close()


def document(answer: Any, status: int = 200, **headers: str) -> Response:
    """A JSON answer for a gate to give."""
    return Response(json.dumps(answer), status, headers, media_type="application/json")

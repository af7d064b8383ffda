"""A client of HTTP/1.1 that costs little: a connection is a protocol over a raw socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Answers(asyncio.Protocol):
    """A connection that is kept: one request at a time, answers with a Content-Length.

    on_answer: called with the status of an answer and its body.
    """

    def __init__(self, on_answer: Callable[[Answers, int, bytes], None]) -> None:
        self._on_answer = on_answer
        self._received = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Find out whether the answer is whole."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 :])
        self._received.clear()
        self._on_answer(self, int(head[9:12]), body)


class Events(asyncio.Protocol):
    """A stream of server-sent events.

    on_event: called with each event's block of lines. on_end: when the connection has closed.
    """

    def __init__(
        self, request: bytes, on_event: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        self._request, self._on_event, self._on_end = request, on_event, on_end
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Pass whole events on; the head and the sizes of chunks are blocks or lines of others."""
        *blocks, self._received = (self._received + data).split(b"\n\n")
        for block in blocks:
            at = block.find(b"event: ")
            if at >= 0:
                self._on_event(block[at:])

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._on_end()


def request(method: str, path: str, body: bytes | None = None, *headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: fokker", *headers]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def address(url: str) -> tuple[str, int]:
    """Host and port of an http URL."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)

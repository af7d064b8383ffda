"""The benchmark's client of HTTP finds whole answers and whole events, however they come."""

import asyncio
from typing import Any

import pytest

from benchmarks.api.http import Answers, Events, address, request

BODY = b'{"id": "x"}'
ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
STREAM = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b'2c\r\nevent: step\ndata: {"n": 0}\nid: 1-0\n\n\r\n'
    b"8\r\n: ping\n\n\r\n"
    b"2c\r\nevent: succeeded\ndata: {}\nid: 2-0\n\n\r\n0\r\n\r\n"
)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_is_given_when_it_is_whole(size: int):
    seen: list[tuple[int, bytes]] = []
    connection = Answers(lambda _, status, body: seen.append((status, body)))
    for _ in range(2):  # on a connection that is kept
        for piece in pieces(ANSWER, size):
            connection.data_received(piece)
    assert seen == [(202, BODY)] * 2


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_given_block_by_block(size: int):
    seen: list[Any] = []
    stream = Events(b"", seen.append, lambda: seen.append("end"))
    for piece in pieces(STREAM, size):
        stream.data_received(piece)
    stream.connection_lost(None)
    assert [block if block == "end" else block.split(b"\n")[0] for block in seen] == [
        b"event: step",
        b"event: succeeded",
        "end",
    ]


def test_a_request_says_what_its_body_is():
    sent = request("POST", "/generate", b"{}")
    assert sent.startswith(b"POST /generate HTTP/1.1\r\nHost: ")
    assert sent.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert address("http://127.0.0.1:80") == ("127.0.0.1", 80)
    assert isinstance(Answers(print), asyncio.Protocol)

"""The closed loop, against a small HTTP server that counts who is waiting."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.serve.figures.peer import mixed
from benchmarks.serve.load import Load, Request, run
from benchmarks.serve.summary import Record

PREDICT = Request(path="/predict", body={"steps": 1}, images=2)
Answer = Callable[[], Awaitable[tuple[int, object]]]


async def serve_and_run(answer: Answer, **load: float) -> list[Record]:
    """The records of a load on a server that answers each request so."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                await reader.readexactly(length)
                status, document = await answer()
                body = json.dumps(document).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client is gone, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    chosen = Load(base_url=f"http://{host}:{port}", requests=[PREDICT], **load)  # type: ignore[arg-type]
    async with server:
        return await run(chosen)


def test_never_more_requests_wait_than_there_are_clients() -> None:
    waiting, most = 0, 0

    async def answer() -> tuple[int, object]:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        return 200, {"images": ["", ""]}

    found = asyncio.run(serve_and_run(answer, clients=3, seconds=30, total=20))
    assert most == 3
    assert len(found) == 20
    assert {record.images for record in found} == {2}


def test_clients_stop_asking_when_the_time_is_over_and_then_wait_for_their_answers() -> None:
    received = 0

    async def answer() -> tuple[int, object]:
        nonlocal received
        received += 1
        await asyncio.sleep(1.0)
        return 200, {"images": ["", ""]}

    found = asyncio.run(serve_and_run(answer, clients=2, seconds=0.9, drain=60))
    assert len(found) == received
    assert all(record.started < 0.9 < record.ended for record in found)


def test_answers_that_come_after_the_drain_leave_no_record() -> None:
    async def answer() -> tuple[int, object]:
        await asyncio.sleep(60)
        return 200, {"images": ["", ""]}

    assert asyncio.run(serve_and_run(answer, clients=2, seconds=0.1, drain=0.1)) == []


@pytest.mark.parametrize(
    ("status", "document", "reason"),
    [(503, {"detail": "full"}, "503.*full"), (200, {"images": [""]}, "1 images instead of 2")],
)
def test_a_failed_request_ends_the_load_and_says_why(
    status: int, document: object, reason: str
) -> None:
    async def answer() -> tuple[int, object]:
        return status, document

    found = asyncio.run(serve_and_run(answer, clients=1, seconds=30))
    assert len(found) == 1
    assert re.search(reason, found[0].error or "", re.DOTALL)


def test_mixed_load_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert mixed(1) == mixed(1)
    assert mixed(1) != mixed(2)

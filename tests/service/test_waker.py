"""Hints: merged while one is on its way, and never in the way of a request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from kombu.exceptions import OperationalError

from service.api.waker import Waker
from tests.service.helpers import LIMIT

pytestmark = pytest.mark.anyio


class Noting:
    """Notes the hints instead of sending them; fails for as many as `failures`."""

    def __init__(self, failures: int = 0) -> None:
        self.sent: list[str] = []
        self.failures = failures

    def hint(self, job_id: str) -> None:
        self.sent.append(job_id)
        if len(self.sent) <= self.failures:
            raise OperationalError("the broker is away")


@asynccontextmanager
async def running(hinter: Noting) -> AsyncIterator[Waker]:
    waker = Waker(hinter.hint)
    task = asyncio.create_task(waker.run())
    yield waker
    task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.001)


async def test_hints_that_come_together_are_merged_and_the_last_is_sent():
    hinter = Noting()
    async with running(hinter) as waker:
        waker.wake("first")
        await until(lambda: hinter.sent == ["first"])
        for number in range(200):
            waker.wake(str(number))
            await asyncio.sleep(0)
        await until(lambda: hinter.sent[-1] == "199")
        assert len(hinter.sent) < 10


async def test_a_broker_that_is_away_is_said_once_and_hints_go_on(
    caplog: pytest.LogCaptureFixture,
):
    hinter = Noting(failures=3)
    with caplog.at_level(logging.WARNING):
        async with running(hinter) as waker:
            for number in range(5):
                waker.wake(str(number))
                await until(lambda number=number: hinter.sent[-1:] == [str(number)])
    assert [record.message for record in caplog.records] == ["no hint was sent: the broker is away"]

import asyncio

import pytest

from service.jobs.tasks import end
from tests.service.helpers import LIMIT

pytestmark = pytest.mark.anyio


async def test_tasks_end_though_a_cancellation_is_lost() -> None:
    lost = 0

    async def lose_two() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async def fail() -> None:
        raise ValueError("of which nobody is told")

    tasks = [asyncio.create_task(lose_two()), asyncio.create_task(fail())]
    await asyncio.sleep(0)
    async with asyncio.timeout(LIMIT):
        await end(*tasks)
    assert lost == 2
    assert all(task.done() for task in tasks)


async def test_the_end_of_nothing_is_at_once() -> None:
    await end()

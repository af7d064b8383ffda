"""Ending asyncio tasks."""

import asyncio
from typing import Any

AGAIN = 0.1  # seconds until a task that still runs is canceled again


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, however they do.

    A cancellation may be lost: until Python 3.12 `asyncio.wait_for`, by which Redis's client sends,
    swallows one that comes when what it waits for is done. The client may also make an error of its
    own of it.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)

"""Hints for workers, sent beside the requests that they are about.

Sending one takes a thread, and about as long as all else that a submission needs. A worker that
wakes takes what it has room for, and looks by itself four times a second: so hints that come while
one is on its way are merged into the next, and none is waited for.
"""

import asyncio
import logging
from collections.abc import Callable

import anyio.to_thread
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

INTERVAL = 0.02  # seconds between two hints, at least


class Waker:
    """Wakes workers as long as `run` runs."""

    def __init__(self, hint: Callable[[str], None]) -> None:
        """hint: called in a thread with the id of a job that waits, as `Hinter.hint`."""
        self._hint = hint
        self._latest = ""
        self._asked = asyncio.Event()

    def wake(self, job_id: str) -> None:
        """Say soon that a job waits."""
        self._latest = job_id
        self._asked.set()

    async def run(self) -> None:
        """Send the hints; one that cannot be sent is said once, and not sent again."""
        failing = False
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await anyio.to_thread.run_sync(self._hint, self._latest)
                failing = False
            except Exception as error:
                # The jobs are stored: a worker that has room finds them, a moment later.
                if not failing:
                    trace = None if isinstance(error, OperationalError) else error
                    about = {"job_id": self._latest}
                    log.warning("no hint was sent: %s", error, exc_info=trace, extra=about)
                failing = True
            await asyncio.sleep(INTERVAL)

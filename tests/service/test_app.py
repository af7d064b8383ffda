"""The API as it starts and stops."""

import asyncio
import contextlib

import pytest

from service.api import create_app
from service.jobs.memory_store import Memory, MemoryJobStore
from service.settings import Settings
from tests.service.helpers import LIMIT

pytestmark = pytest.mark.anyio


class Stubborn(MemoryJobStore):
    """Loses the first cancellation, as Redis's client may."""

    def __init__(self) -> None:
        super().__init__(Settings(), Memory())
        self.asked = asyncio.Event()

    async def settle(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


async def test_nothing_runs_on_when_the_server_has_stopped() -> None:
    store = Stubborn()
    app = create_app(Settings(), store)
    before = asyncio.all_tasks()
    async with asyncio.timeout(LIMIT):
        async with app.router.lifespan_context(app):
            await store.asked.wait()
        assert asyncio.all_tasks() == before

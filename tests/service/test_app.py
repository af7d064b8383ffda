"""The API as it starts and stops."""

import asyncio

import pytest

from service.api import create_app
from service.jobs.errors import StoreError
from service.jobs.memory_store import Memory, MemoryJobStore
from service.settings import Settings
from tests.service.helpers import LIMIT

pytestmark = pytest.mark.anyio


class Stubborn(MemoryJobStore):
    """Answers the first cancellation with an error of its own, as Redis's client may."""

    def __init__(self) -> None:
        super().__init__(Settings(), Memory())
        self.asked = asyncio.Event()

    async def settle(self) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if first:
                raise StoreError("the connection is closed") from None
            raise


async def test_the_chores_end_with_the_server_whatever_the_store_makes_of_it() -> None:
    store = Stubborn()
    app = create_app(Settings(), store)
    before = asyncio.all_tasks()
    async with asyncio.timeout(LIMIT):
        async with app.router.lifespan_context(app):
            await store.asked.wait()
        assert asyncio.all_tasks() == before

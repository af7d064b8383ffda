"""What was found out a moment ago, for those who need it often and not to the second."""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Recent(Generic[Found]):
    """Calls `find` when it last found nothing, or so many seconds ago."""

    def __init__(self, find: Callable[[], Awaitable[Found]], seconds: float) -> None:
        self._find, self._seconds = find, seconds
        self._found: tuple[float, Found] | None = None

    async def __call__(self) -> Found:
        """What was found, now or a moment ago."""
        if self._found is not None and self._found[1] and time.monotonic() < self._found[0]:
            return self._found[1]
        return await self.now()

    async def now(self) -> Found:
        """What there is now."""
        found = await self._find()
        self._found = (time.monotonic() + self._seconds, found)
        return found

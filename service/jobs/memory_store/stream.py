"""A job's events in memory: bounded, with ids like those of a Redis stream."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service.jobs.events import Event, order


@dataclass(eq=False)
class Stream:
    """The events that are kept of one job, oldest first.

    bound: how many. wake: called when there is something new, once for each who waits.
    """

    bound: int
    events: list[Event] = field(default_factory=list)
    wake: set[Callable[[], None]] = field(default_factory=set)
    _last: tuple[int, int] = (0, 0)  # ids, as `order` has them
    _removed: tuple[int, int] = (0, 0)
    _previews: deque[Event] = field(default_factory=deque)

    def append(self, kind: str, data: str, now: float) -> Event:
        """Add an event at `now` seconds; the oldest one leaves for it if there are too many."""
        milliseconds, sequence = self._last
        if (fresh := int(now * 1000)) > milliseconds:
            self._last = fresh, 0
        else:
            self._last = milliseconds, sequence + 1
        event = Event("{}-{}".format(*self._last), kind, data)
        self.events.append(event)
        if len(self.events) > self.bound:
            self._remove(self.events[0])
        self.rouse()
        return event

    def append_preview(self, data: str, now: float, most: int, most_bytes: int) -> None:
        """Add a preview; of those only the last few stay."""
        self._previews.append(self.append("preview", data, now))
        while len(self._previews) > most or sum(len(p.data) for p in self._previews) > most_bytes:
            self._remove(self._previews[0])

    def after(self, event_id: str) -> list[Event]:
        """The events that follow an id."""
        return self.events[bisect_right(self.events, order(event_id), key=_order) :]

    def lost(self, event_id: str) -> bool:
        """Whether events after an id were removed."""
        return self._removed > order(event_id)

    def rouse(self) -> None:
        """Wake all who wait."""
        for wake in self.wake:
            wake()

    def _remove(self, event: Event) -> None:
        self.events.remove(event)
        self._removed = max(self._removed, _order(event))
        if self._previews and self._previews[0] is event:
            self._previews.popleft()


def _order(event: Event) -> tuple[int, int]:
    return order(event.id)

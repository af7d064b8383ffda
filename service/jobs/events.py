"""What is told of a job while it lives: a stream of events, whose ids say where a reader is."""

from dataclasses import dataclass

from service.jobs.job import FINISHED

FROM_THE_START = "0-0"
"""The id before every stream's first."""

GAP = "gap"


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream: its id, its type and its data as JSON text.

    A `gap` is no entry: it stands where entries were removed before this reader came to them.
    """

    id: str
    type: str
    data: str

    @property
    def last(self) -> bool:
        """Whether this is the terminal event."""
        return self.type in FINISHED


def order(event_id: str) -> tuple[int, int]:
    """An id, `milliseconds-sequence`, as numbers that say which event came first."""
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def follows(event_id: str, other: str) -> bool:
    """Whether the event `event_id` comes after `other` in their stream."""
    return order(event_id) > order(other)

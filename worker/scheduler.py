"""Which rows the next network call advances: shares of device time, and short work first.

The engine holds the rows of a job in parts, which advance together. A call can hold parts of one
lane only (a model and a kind of call). So a choice has two halves:

- *Whose turn?* The parts of one lane and one class wait in one queue, and queues share the
  device's time by start-time fair queueing (Goyal, Vin & Cheng 1996): a queue that ran s seconds
  moves s / weight along its own axis, the queue that is least far goes next, and one that was
  empty starts where the least far of the others is, so that idling earns nothing. Classes weigh
  `weights`; within a class a lane weighs the full calls that one step of all its rows takes: two
  lanes with one full call each get half of the time each, whatever their calls cost, a lane with
  three times the rows gets three times the time, and a lone row takes turns with a full call.
- *Which of its parts?* A share `short_share` of the rows goes to the parts with the fewest calls
  left, the rest to the oldest. The first keeps short requests short, the second lets nobody wait
  forever; neither needs a constant that fits the load.

What room is left in the call goes to the lane's other class, as long as that lengthens the call
by no more than `stretch`, and not at all if that class is ahead of its share: a lone interactive
row is not made to wait for 63 batch rows where they cost time, and takes them along where they
cost none.

Nothing starves. Let c be the longest call, w the least weight of the n queues that wait and W the
sum of their weights. No queue is ever ahead of the least far by more than 2c / w, so while weights
stand still a waiting queue runs again within 2c W / w + n c. In its queue, the oldest part is in
every second call at least, and every part is the oldest one day.

That a call follows one of another model costs nothing that could be measured (docs/decisions.md),
so lanes change as often as fairness wants.

Constants are chosen by `python -m benchmarks.scheduling`. Times are in seconds; there is no clock
and no randomness in here.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.jobs.parameters import Priority

WEIGHTS: Mapping[Priority, float] = {"interactive": 3.0, "batch": 1.0}
SHORT_SHARE = 0.6
STRETCH = 0.25


@dataclass(eq=False, kw_only=True)
class Part:
    """Rows of one job that advance together; what is not said to change stays while it waits."""

    lane: Hashable
    priority: Priority
    rows: int  # at least 1, may shrink
    calls_left: float  # estimate of the network calls still needed, may change
    arrived: float  # when its job came, seconds on any clock


APart = TypeVar("APart", bound=Part)


@dataclass(eq=False, kw_only=True)
class _Queue(Generic[APart]):
    """The waiting parts of one lane and class, and how far they are along their axis."""

    lane: Hashable
    priority: Priority
    position: float  # seconds of device time / weight
    weight: float = 1.0
    parts: list[APart] = field(default_factory=list)  # oldest first
    rows: int = 0  # of all parts, when last counted
    credit: float = 0.0  # rows that the parts nearly done may take
    passed: APart | None = None  # the oldest, if it was left out of the last call


@dataclass(eq=False)
class _Call(Generic[APart]):
    """The parts of a call while it is put together."""

    room: int
    rows: int = 0
    parts: dict[APart, None] = field(default_factory=dict)  # a set in order

    def take(self, part: APart) -> bool:
        """Whether the part came in: it is not in yet and fits, or the call is empty."""
        if part in self.parts or (self.parts and part.rows > self.room):
            return False
        self.parts[part] = None
        self.rows += part.rows
        self.room -= part.rows
        return True


class Scheduler(Generic[APart]):
    """Picks the parts of each network call; see the module for the policy.

    `cost(lane, rows)` is the seconds of a call of so many rows, never less for more rows;
    `capacity(lane)` the most rows worth having in one call. Both may change over time.
    """

    def __init__(
        self,
        cost: Callable[[Any, int], float],
        capacity: Callable[[Any], int],
        *,
        weights: Mapping[Priority, float] = WEIGHTS,
        short_share: float = SHORT_SHARE,
        stretch: float = STRETCH,
    ) -> None:
        self._cost, self._capacity = cost, capacity
        self._weights, self._short_share = weights, short_share
        self._stretch = stretch
        self._queues: dict[tuple[Hashable, Priority], _Queue[APart]] = {}
        self._position = 0.0  # of the waiting queue that is least far

    def add(self, part: APart) -> None:
        """Let a part wait for calls, until it is removed."""
        key = (part.lane, part.priority)
        queue = self._queues.get(key)
        if queue is None:
            queue = _Queue(lane=part.lane, priority=part.priority, position=self._position)
            self._queues[key] = queue
        insort(queue.parts, part, key=lambda other: other.arrived)

    def remove(self, part: APart) -> None:
        """Take out a part that is done or cancelled. ValueError if it is not waiting."""
        queue = self._queues.get((part.lane, part.priority))
        if queue is None or part not in queue.parts:
            raise ValueError("this part is not waiting: it was never added, or is removed already")
        queue.parts.remove(part)
        if queue.passed is part:
            queue.passed = None

    def choose(self) -> list[APart]:
        """The parts of the next call, all of one lane; none if nothing waits.

        Their rows fit the lane's capacity, but for a part larger than it, which goes alone. The
        call is charged to the queues of its parts.
        """
        waiting = self._waiting()
        if not waiting:
            return []
        self._weigh(waiting)
        queue = min(waiting, key=lambda queue: (queue.position, queue.priority == "batch"))
        call = self._lead(queue)
        seconds = self._cost(queue.lane, call.rows)
        queue.position += seconds / queue.weight
        for other in waiting:
            if other.lane == queue.lane and other is not queue:
                ahead = other.position > queue.position
                self._ride(other, call, seconds * (1.0 if ahead else 1.0 + self._stretch))
                longer = self._cost(queue.lane, call.rows) - seconds
                other.position += longer / other.weight
        return list(call.parts)

    def _waiting(self) -> list[_Queue[APart]]:
        """Queues with parts; forgets the empty ones that the others have caught up with."""
        waiting = [queue for queue in self._queues.values() if queue.parts]
        if waiting:
            self._position = max(self._position, min(queue.position for queue in waiting))
        if len(waiting) < len(self._queues):
            self._queues = {
                key: queue
                for key, queue in self._queues.items()
                if queue.parts or queue.position > self._position
            }
        return waiting

    def _weigh(self, waiting: Iterable[_Queue[APart]]) -> None:
        """Divide each class's weight among its lanes by the full calls that a step takes."""
        total = dict.fromkeys(self._weights, 0.0)
        for queue in waiting:
            full = self._capacity(queue.lane)
            queue.rows = sum(part.rows for part in queue.parts)
            if queue.rows >= full:
                queue.weight = queue.rows / full
            else:
                queue.weight = self._cost(queue.lane, queue.rows) / self._cost(queue.lane, full)
            total[queue.priority] += queue.weight
        for queue in waiting:
            queue.weight *= self._weights[queue.priority] / total[queue.priority]

    def _lead(self, queue: _Queue[APart]) -> _Call[APart]:
        """A call of one queue's parts: what is owed to those nearly done, then the oldest."""
        call: _Call[APart] = _Call(self._capacity(queue.lane))
        if queue.rows <= call.room:
            for part in queue.parts:
                call.take(part)
            queue.passed = None
            return call
        if queue.passed is queue.parts[0]:
            call.take(queue.parts[0])
        self._take_short(queue, call)
        for part in queue.parts:
            if call.room <= 0:
                break
            call.take(part)
        queue.passed = None if queue.parts[0] in call.parts else queue.parts[0]
        return call

    def _take_short(self, queue: _Queue[APart], call: _Call[APart]) -> None:
        """Parts with the fewest calls left, as far as the queue's credit goes."""
        shortest = sorted(queue.parts, key=lambda part: part.calls_left)
        most = max(self._capacity(queue.lane), shortest[0].rows)
        queue.credit = min(queue.credit + self._short_share * most, most)
        for part in shortest:
            if part.rows > queue.credit:
                break
            if call.take(part):
                queue.credit -= part.rows

    def _ride(self, queue: _Queue[APart], call: _Call[APart], longest: float) -> None:
        """Add a queue's parts, oldest first, as long as the call takes no more than `longest`."""
        sizes = range(call.rows, call.rows + call.room + 1)
        fitting = bisect_right(sizes, longest, key=lambda rows: self._cost(queue.lane, rows))
        call.room = min(call.room, fitting - 1)
        for part in queue.parts:
            if call.room <= 0:
                break
            call.take(part)

"""What an operator wants to know of all jobs at one moment, as `JobStore.overview` finds it."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waiting:
    """One queue: its jobs, their row-calls (rows × network calls), seconds that its first waits."""

    jobs: int
    row_calls: int
    oldest: float


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All queues, leases and counts, and the memory that they are kept in.

    waiting: by (checkpoint, priority); queues without jobs are left out. row_calls_running: by
    checkpoint. overdue: running jobs whose lease ended, and that no reaper has settled yet.
    counts: of what ever happened, by its name and what it was about.
    memory_limit: bytes; 0 without a limit.
    """

    waiting: dict[tuple[str, str], Waiting] = field(default_factory=dict)
    running: int = 0
    row_calls_running: Counter[str] = field(default_factory=Counter)
    overdue: int = 0
    webhooks: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    memory_used: int = 0
    memory_limit: int = 0

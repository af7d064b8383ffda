"""The courier: a thread that carries what jobs produce to the store, in order.

While the store is away it keeps trying; a claim whose lease was lost is dropped, with all that was
still to be written for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable

from service.jobs.errors import ArtifactsError, StoreError
from service.jobs.lease import Claim, JobDeleted, LeaseLost
from worker.threads import use_one_core

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5

_PATIENCE = 30.0
"""Seconds that a job's files may find no place, while those of others wait behind them."""

_BROKEN = "the result could not be encoded or stored; the worker's log has the reason"


class Courier:
    """Runs deliveries one after another until it is stopped."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Claim, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting: Counter[Claim] = Counter()
        self._lock = threading.Lock()
        self._lost: weakref.WeakSet[Claim] = weakref.WeakSet()
        self._stopping = threading.Event()
        self.on_lost: Callable[[Claim, str], None] = lambda claim, reason: None
        """Called when a claim turns out to be "lost" or "deleted", so that its work may end."""
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Start the courier's thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Deliver what is queued, for at most ``timeout`` seconds, and end the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._stopping.set()

    def send(self, claim: Claim, delivery: Callable[[], None]) -> None:
        """Queue a delivery for a claim; never blocks."""
        with self._lock:
            self._waiting[claim] += 1
        self._queue.put((claim, delivery))

    def claims(self) -> list[Claim]:
        """The claims with something still to be delivered; their leases must be kept alive."""
        with self._lock:
            return list(self._waiting)

    def _run(self) -> None:
        use_one_core()
        while (item := self._queue.get()) is not None:
            claim, delivery = item
            if claim not in self._lost:
                self._deliver(claim, delivery)
            with self._lock:
                self._waiting[claim] -= 1
                if not self._waiting[claim]:
                    del self._waiting[claim]

    def _deliver(self, claim: Claim, delivery: Callable[[], None]) -> None:
        patience = time.monotonic() + _PATIENCE
        while True:
            try:
                return delivery()
            except LeaseLost as lost:
                deleted = isinstance(lost, JobDeleted)
                log.log(
                    logging.INFO if deleted else logging.WARNING,
                    "%s",
                    lost,
                    extra={"job_id": claim.job.id},
                )
                self._lost.add(claim)
                self.on_lost(claim, "deleted" if deleted else "lost")
                return None
            except StoreError as error:
                if isinstance(error, ArtifactsError) and time.monotonic() > patience:
                    log.error("%s", error, extra={"job_id": claim.job.id})
                    return self._give_up(claim, f"{error}")
                log.warning("%s; trying again", error)
                if self._stopping.wait(_RETRY_SECONDS):
                    return None
            except Exception:
                log.exception("a delivery failed", extra={"job_id": claim.job.id})
                return self._give_up(claim, _BROKEN)

    def _give_up(self, claim: Claim, detail: str) -> None:
        """A result that cannot be written fails its job, rather than leave it running for ever."""
        self._lost.add(claim)
        try:
            claim.fail({"type": "about:blank", "title": "Failed", "detail": detail})
        except Exception as error:  # whatever it is, the courier goes on
            log.warning("left to the reaper: %s", error, extra={"job_id": claim.job.id})

"""A worker process: Celery takes hints, the engine runs what was claimed, a keeper keeps leases.

Celery runs with a pool of threads and one task, which ends as soon as the engine owns the job.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import socket
import threading

import redis
import torch
from celery import signals

from service.jobs.hints import TASK_NAME, Hinter, make_celery
from service.jobs.lease import WorkerStore
from service.settings import Settings
from worker.courier import Courier
from worker.engine import Engine
from worker.shelf import SHIPPED, Shelf

log = logging.getLogger(__name__)

_GRACE = 10.0
"""Seconds that the last deliveries get when the worker stops."""


class Keeper:
    """The thread that renews leases, passes on cancellations, announces models and reaps."""

    def __init__(self, store: WorkerStore, engine: Engine, courier: Courier, shelf: Shelf) -> None:
        self._store, self._engine = store, engine
        self._courier, self._shelf = courier, shelf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        lease = self._store.settings.lease
        pause = min(lease / 4, 0.25)  # a cancellation is noticed within this time
        rounds = max(1, round(lease / 4 / pause))
        for count in itertools.count():
            try:
                self._renew()
                if count % rounds == 0:
                    self._store.announce(self._shelf.cards, lease)
                    self._store.reap()
            except redis.RedisError as error:
                log.warning("Redis does not answer: %s", error)
            except Exception:
                log.exception("the keeper goes on after an error")
            if self._stopping.wait(pause):
                return

    def _renew(self) -> None:
        for claim in {*self._engine.claims(), *self._courier.claims()}:
            held = claim.renew()
            if held != "held":
                self._engine.stop_job(claim, held)


def run_worker(settings: Settings) -> int:
    """Serve jobs until SIGTERM or SIGINT; jobs still running then are handed back.

    Returns the exit code: not 0 when the worker ended by a failure.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shelf = Shelf(settings.models or SHIPPED, device)
    celery = make_celery(settings.require_redis())
    hinter = Hinter(celery)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    store = WorkerStore(settings, worker_id, hinter.hint)
    courier = Courier()
    engine = Engine(shelf, courier)
    keeper = Keeper(store, engine, courier, shelf)

    def run(job_id: str) -> None:
        if not engine.wait_for_room():
            hinter.hint(job_id)  # for another worker
            return
        claim = store.claim(job_id, shelf.models.keys())
        if claim is None:
            return
        try:
            inputs = claim.inputs()
        except redis.RedisError:
            claim.release("its inputs could not be read")
            raise
        engine.admit(claim, inputs)

    celery.task(name=TASK_NAME)(run)

    def begin(**_: object) -> None:
        courier.start()
        engine.start()
        keeper.start()
        log.info("serving %s on %s", [card["name"] for card in shelf.cards], device)

    def end(**_: object) -> None:
        engine.begin_stop()

    signals.worker_ready.connect(begin, weak=False)
    signals.worker_shutting_down.connect(end, weak=False)
    # A hint that was dealt with is no news; what became of its job is, and the engine says it.
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    worker = celery.Worker(
        pool="threads",
        concurrency=1,
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    try:
        worker.start()  # returns, with an exit code, also when it failed
    finally:
        engine.stop()
        courier.stop(_GRACE)
        keeper.stop()  # last: what is delivered still needs its lease
        store.withdraw()
        store.close()
    return int(worker.exitcode or 0)

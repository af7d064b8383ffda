"""A worker process: a claimer takes jobs, the engine runs them, a keeper keeps their leases.

Celery's one task, in a pool of threads, wakes the claimer. Which job is taken, and when, is the
store's and the engine's to say.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from celery import signals

from model.compiled import can_compile
from model.cores import start_threads
from service.jobs.errors import StoreError
from service.jobs.hints import TASK_NAME, Hinter, make_celery
from service.jobs.lease import Claim, WorkerStore
from service.jobs.redis_store import RedisWorkerStore
from service.logs import configure
from service.settings import Settings, SettingsError
from worker import processes
from worker.courier import Courier
from worker.engine import Engine
from worker.knee import Curves, default_cache
from worker.metrics import Metrics, exported
from worker.shelf import SHIPPED, Shelf, default_budget
from worker.threads import CORES, SharedCores, share_interpreter, use_one_core

log = logging.getLogger(__name__)

_GRACE = 10.0
"""Seconds that the last deliveries get when the worker stops."""

_PROCESSES = 4
"""Processes of a worker on a CPU, at most, unless it is told otherwise: each takes memory."""

_LOOK = 0.25
"""Seconds after which the claimer looks for jobs again, hint or no hint."""

_FILES = 4.0
"""Seconds after which the models' folder is looked at again."""

_PAUSE = 1.0
"""Seconds that the claimer waits after a failure."""


class Claimer:
    """The thread that claims jobs, while the engine has room and there are any.

    It looks when it is woken, when there is room again, and every quarter of a second: a hint that
    was lost, or that a dying worker took along, delays its job by no more than that.
    """

    def __init__(self, store: WorkerStore, engine: Engine, courier: Courier, shelf: Shelf) -> None:
        self._store, self._engine = store, engine
        self._courier, self._shelf = courier, shelf
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._failing = False
        self._next_files = 0.0
        engine.on_leave = self.wake
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look for jobs now, if there is room."""
        self._woken.set()

    def begin_stop(self) -> None:
        """Ask the thread to end; it claims no more."""
        self._stopping.set()
        self._woken.set()

    def stop(self) -> None:
        """End the thread. To be called before the engine is asked to stop."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        use_one_core()
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self._look_for_files()
                if self._engine.wait_for_room(_LOOK) and not self._claim_one():
                    self._woken.wait(_LOOK)
            except Exception as error:
                self._failed(error)
                self._stopping.wait(_PAUSE)

    def _look_for_files(self) -> None:
        """Now and then; here and not by the keeper, whose leases cannot wait for a large file."""
        if time.monotonic() >= self._next_files:
            self._shelf.refresh()
            self._next_files = time.monotonic() + _FILES

    def _claim_one(self) -> bool:
        """Claim a job and hand it to the engine; False if there was none."""
        blocked = self._shelf.blocked
        digests = self._shelf.digests if blocked is None else [blocked]
        claim = self._store.claim(digests, self._engine.rooms())
        if claim is not None:
            self._admit(claim)
        self._failing = False
        return claim is not None

    def _admit(self, claim: Claim) -> None:
        try:
            inputs = claim.inputs()
        except Exception as error:
            reason = f"its inputs could not be read: {error}"
            # The courier keeps the claim alive and tries again, should the store be away.
            self._courier.send(claim, lambda: claim.release(reason))
            raise
        self._engine.admit(claim, inputs)

    def _failed(self, error: Exception) -> None:
        """Say once that jobs cannot be claimed, with a traceback unless the store is away."""
        if not self._failing:
            trace = None if isinstance(error, StoreError) else error
            log.warning(
                "no job can be claimed (%s); trying every %g s", error, _PAUSE, exc_info=trace
            )
        self._failing = True


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
        duties = (self._renew, self._announce, self._store.look_at_memory, self._store.reap)
        for count in itertools.count():
            self._try(self._pass_on_cancellations)
            for duty in duties if count % rounds == 0 else ():
                self._try(duty)
            if self._stopping.wait(pause):
                return

    def _try(self, duty: Callable[[], object]) -> None:
        """Do a duty; the others do not wait for one that fails: a full store refuses only some."""
        try:
            duty()
        except StoreError as error:
            log.warning("%s", error)
        except Exception:
            log.exception("the keeper goes on after an error")

    def _announce(self) -> None:
        shelf = self._shelf
        self._store.announce(shelf.cards, self._store.settings.lease, shelf.rates, shelf.failures)

    def _pass_on_cancellations(self) -> None:
        asked = self._store.canceled()
        for claim in self._engine.claims() if asked else ():
            if claim.job.id in asked:
                self._engine.stop_job(claim, asked[claim.job.id])

    def _renew(self) -> None:
        claims = list({*self._engine.claims(), *self._courier.claims()})
        for claim, held in zip(claims, self._store.renew(claims), strict=True):
            if held != "held":
                self._engine.stop_job(claim, held)


def _leave_logging(**_: object) -> None:
    """Celery sets no logging up where somebody listens to this signal."""


def run_worker(settings: Settings) -> int:
    """Serve jobs until SIGTERM or SIGINT; jobs still running then are handed back.

    Returns the exit code: not 0 when the worker ended by a failure.
    """
    if settings.compile and not can_compile():
        raise SettingsError("FOKKER_COMPILE needs a C++ compiler: install g++, or leave it unset")
    gpu = torch.cuda.is_available()
    alone = gpu or sys.platform != "linux"
    count = 1 if alone else settings.worker_processes or min(CORES, _PROCESSES)
    configure(settings)
    where = settings.worker_metrics_host, settings.worker_metrics_port
    if count > 1:
        return processes.run(partial(_serve, settings), count, *where)
    metrics = Metrics()
    with exported(metrics.registry, [os.getpid()], *where):
        return _serve(settings, metrics, SharedCores())


def _serve(settings: Settings, metrics: Metrics, cores: SharedCores) -> int:
    """The same in one process, which may be one of several."""
    signals.setup_logging.connect(_leave_logging, weak=False)
    use_one_core()
    share_interpreter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        start_threads(CORES)
    shelf = Shelf(
        settings.models or SHIPPED,
        device,
        budget=(settings.model_memory or default_budget(device)) // cores.processes,
        curves=Curves(settings.cache or default_cache()),
        metrics=metrics,
        precision=getattr(torch, settings.precision),
        compile=settings.compile,
        cores=cores,
    )
    celery = make_celery(settings.require_redis())
    hinter = Hinter(celery)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    store = RedisWorkerStore(settings, worker_id, hinter.hint)
    courier = Courier()
    engine = Engine(
        shelf,
        courier,
        metrics,
        most_jobs=settings.engine_jobs,
        preview_rate=settings.preview_rate / cores.processes,
    )
    courier.on_lost = engine.stop_job
    claimer = Claimer(store, engine, courier, shelf)
    keeper = Keeper(store, engine, courier, shelf)

    def wake(job_id: str) -> None:
        # While there is no room at all, hints are left to the workers that have some.
        engine.wait_for_room()
        claimer.wake()

    celery.task(name=TASK_NAME)(wake)

    def begin(**_: object) -> None:
        shelf.preload()
        courier.start()
        engine.start()
        keeper.start()
        claimer.start()
        log.info("serving %s on %s", [card["name"] for card in shelf.cards], device)

    def end(**_: object) -> None:
        claimer.begin_stop()
        engine.begin_stop()

    signals.worker_ready.connect(begin, weak=False)
    signals.worker_shutting_down.connect(end, weak=False)
    # A hint that was dealt with is no news; what became of its job is, and the engine says it.
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    worker = celery.Worker(
        pool="threads",
        concurrency=1,
        loglevel=settings.log_level,
        quiet=True,  # no banner: it is no log line, and what it says stands in the log
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    try:
        worker.start()  # returns, with an exit code, also when it failed
    finally:
        claimer.stop()
        engine.stop()
        courier.stop(_GRACE)
        keeper.stop()  # last: what is delivered still needs its lease
        store.withdraw()
        store.close()
    return 1 if engine.failed else int(worker.exitcode or 0)

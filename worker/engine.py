"""The engine: one thread owns the device and advances the rows of all jobs together.

A tick admits what has arrived, drops what must stop, lets the scheduler choose the rows of one
network call, runs it, and hands out what came of it. Jobs join and leave between any two ticks.
What a job produces is handed to the courier, so that encoding pictures and talking to Redis never
stop the device.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from model.denoiser import REPRODUCIBLE_ROWS
from model.query import Course, Operation
from service.jobs import parameters as p
from service.jobs.lease import Claim
from service.jobs.parameters import PRIORITIES, Priority
from worker.courier import Courier
from worker.knee import PROBES, Curve
from worker.metrics import Metrics
from worker.operations import NotFiniteError, Outcome, start
from worker.reports import Report, Reports
from worker.runner import Lane, Ride, Runner, Seen, is_out_of_memory
from worker.scheduler import Scheduler
from worker.shelf import ModelError, ServedModel, Shelf
from worker.threads import use_all_cores

log = logging.getLogger(__name__)

PART = 16
"""Rows of a job that advance together, at most."""

ROOM = 4
"""Full batches of rows that are claimed ahead, of each priority; the rest waits in Redis."""


@dataclass(eq=False, kw_only=True)
class Arrival:
    """A claimed job that waits for its model; since: when it was claimed."""

    claim: Claim
    inputs: bytes | None
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False, kw_only=True)
class ActiveJob:
    """A job on its way: the course that it asked for last, and the rides that take it there.

    stop: why it must leave at the next tick, and since when; None while it may stay. calls: network
    calls of the courses before.
    """

    arrival: Arrival
    served: ServedModel
    operation: Operation[Outcome]
    course: Course[Any]
    reports: Reports
    rides: list[Ride] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    calls: int = 0
    stop: tuple[str, float] | None = None
    told_preview: bool = False
    labels: tuple[str, str]  # operation and model, for metrics

    @property
    def claim(self) -> Claim:
        """The claim that owns the job."""
        return self.arrival.claim

    @property
    def age(self) -> float:
        """Seconds since the job was submitted: Redis's until it was claimed, ours since."""
        job = self.claim.job
        waited = (job.started or 0.0) - (job.created or 0.0)
        return max(0.0, waited) + time.monotonic() - self.arrival.since


class Engine:
    """Runs jobs until it is stopped. `admit` may be called from any thread."""

    def __init__(
        self,
        shelf: Shelf,
        courier: Courier,
        metrics: Metrics | None = None,
        *,
        most_jobs: int | None = None,
    ) -> None:
        """most_jobs: in flight at once; any number if left out."""
        self._shelf = shelf
        self._courier = courier
        self._metrics = metrics or Metrics()
        self._most_jobs = most_jobs
        self._scheduler: Scheduler[Ride] = Scheduler(self._cost, self._capacity)
        self._runners: dict[str, Runner] = {}
        self._served: dict[str, ServedModel] = {}
        self._job_of: dict[Ride, ActiveJob] = {}
        self._next_count = 0.0
        self._evaluated: Counter[tuple[str, str]] = Counter()  # rows of this tick, by labels
        self._reduced: dict[Lane, int] = {}  # capacities that ran out of memory, halved
        self.on_leave: Callable[[], None] = lambda: None
        """Called when a job has left, so that another one may be claimed."""

        self._changed = threading.Condition()  # guards what follows
        self._waiting: list[Arrival] = []
        self._prepared: list[ActiveJob] = []
        self._active: list[ActiveJob] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # From any thread

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Ask the thread to end at the next tick; nothing is admitted any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread, and hand every job back that has not finished."""
        self.begin_stop()
        if self._thread.is_alive():
            self._thread.join()
        with self._changed:
            unfinished = self._claims()
            self._waiting, self._prepared, self._active = [], [], []
        for claim in unfinished:
            self._courier.send(claim, claim.release)

    def rooms(self) -> dict[Priority, int]:
        """Rows that may still be claimed, by priority; not above 0 where no job may be."""
        with self._changed:
            claims = self._claims()
        if self._most_jobs is not None and len(claims) >= self._most_jobs:
            return dict.fromkeys(PRIORITIES, 0)
        taken = Counter[str]()
        for claim in claims:
            taken[claim.job.priority] += claim.job.rows
        batch = max((served.curve.knee for served in list(self._served.values())), default=64)
        return {priority: ROOM * batch - taken[priority] for priority in PRIORITIES}

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Block until a job may be claimed; False if none may: stopping, or timed out."""

        def free() -> bool:
            return any(room > 0 for room in self.rooms().values())

        with self._changed:
            self._changed.wait_for(lambda: self._stopping or free(), timeout)
            return not self._stopping and free()

    def admit(self, claim: Claim, inputs: bytes | None) -> None:
        """Take over a claimed job with its packed arrays; it starts once its model is loaded."""
        with self._changed:
            if not self._stopping:
                self._shelf.pin(claim.job.digest)
                self._waiting.append(Arrival(claim=claim, inputs=inputs))
                stopping = False
            else:
                stopping = True
        if stopping:
            self._courier.send(claim, claim.release)
        else:
            self._prepare_waiting()

    def claims(self) -> list[Claim]:
        """The claims that must be kept alive."""
        with self._changed:
            return self._claims()

    def stop_job(self, claim: Claim, reason: str) -> None:
        """Make a job leave at the next tick: "cancel" or "lost"."""
        with self._changed:
            for job in (*self._prepared, *self._active):
                if job.claim is claim:
                    job.stop = job.stop or (reason, time.monotonic())

    @property
    def idle(self) -> bool:
        """Whether no row of any job is left anywhere."""
        with self._changed:
            return not (self._claims() or self._job_of or self._runners)

    def _claims(self) -> list[Claim]:
        jobs = (*self._prepared, *self._active)
        return [*(job.claim for job in jobs), *(arrival.claim for arrival in self._waiting)]

    # From the threads that bring jobs and models, so that the engine's own is not held up

    def _prepare_waiting(self) -> None:
        """Begin the jobs whose model is loaded; called again when one has been."""
        with self._changed:
            waiting = list(self._waiting)
        for arrival in waiting:
            digest = arrival.claim.job.digest
            try:
                served = self._shelf.request(digest, self._prepare_waiting)
            except ModelError as error:
                if self._leave_waiting(arrival):
                    self._shelf.unpin(digest)
                    self._fail(arrival.claim, error)
                continue
            if served is not None and self._leave_waiting(arrival):
                self._prepare(arrival, served)

    def _leave_waiting(self, arrival: Arrival) -> bool:
        """Whether the job was still waiting: of several threads one takes it on."""
        with self._changed:
            if arrival not in self._waiting:
                return False
            self._waiting.remove(arrival)
            return True

    def _prepare(self, arrival: Arrival, served: ServedModel) -> None:
        job = arrival.claim.job
        try:
            parameters = p.OPERATIONS[job.operation].model_validate(job.parameters)
            operation = start(served, parameters, arrival.inputs)
            prepared = ActiveJob(
                arrival=arrival,
                served=served,
                operation=operation,
                course=next(operation),
                reports=Reports(served.checkpoint.description.data, parameters),
                labels=(job.operation, served.name),
            )
        except Exception as error:
            self._shelf.unpin(job.digest)
            self._fail(arrival.claim, error)
            return
        with self._changed:
            self._prepared.append(prepared)
            self._changed.notify_all()

    # The engine's thread

    def _run(self) -> None:
        use_all_cores()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._active or self._prepared)
                    if self._stopping:
                        return
                self.tick()
        except BaseException:
            # Without its engine a worker would keep its leases and do nothing.
            log.critical("the engine failed; the worker stops", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def tick(self) -> None:
        """Admit, drop what must stop, run one network call, hand out."""
        begin = time.perf_counter()
        self._admit_prepared()
        self._drop_stopped()
        rides = self._scheduler.choose()
        if rides:
            now = time.monotonic()
            for seen in self._advance(rides):
                self._hand_out(seen, now)
            for labels, rows in self._evaluated.items():
                self._metrics.nfe[labels].inc(rows)
            self._evaluated.clear()
            self._count_waiting(rides, now)
            self._metrics.tick_seconds.observe(time.perf_counter() - begin)

    def _count_waiting(self, chosen: Sequence[Ride], now: float) -> None:
        """Once a second: how many rows of each model were left out of the last call."""
        if now < self._next_count:
            return
        self._next_count = now + 1.0
        waiting = dict.fromkeys((served.name for served in self._served.values()), 0)
        for ride in self._job_of.keys() - set(chosen):
            waiting[self._job_of[ride].served.name] += ride.rows
        for name, rows in waiting.items():
            self._metrics.rows_waiting[name].set(rows)

    def _admit_prepared(self) -> None:
        with self._changed:
            prepared, self._prepared = self._prepared, []
            self._active += prepared
        for job in prepared:
            self._metrics.queue_wait[job.labels].observe(job.age)
            self._served[job.served.header.digest] = job.served
            self._board(job)

    def _board(self, job: ActiveJob) -> None:
        """Take the course that a job asks for into the device."""
        digest = job.served.header.digest
        runner = self._runners.get(digest)
        if runner is None:
            runner = self._runners[digest] = Runner(digest, job.served.denoiser)
        size = min(PART, self._capacity(Lane.of(digest, job.course)))
        job.rides = runner.admit(job.course, size, job.claim.job.priority, job.arrival.since)
        job.results = [None] * len(job.rides)
        for ride in job.rides:
            self._job_of[ride] = job
            self._scheduler.add(ride)

    def _drop_stopped(self) -> None:
        for job in list(self._active):
            if job.stop is None:
                continue
            reason, since = job.stop
            if reason == "cancel":
                self._courier.send(job.claim, partial(job.claim.cancel, "requested"))
                self._metrics.jobs[job.claim.job.operation, "canceled"].inc()
            self._leave(job)
            self._metrics.cancel_latency.observe(time.monotonic() - since)

    def _advance(self, rides: Sequence[Ride]) -> list[Seen]:
        """One network call; where it fails, smaller ones, down to the job whose fault it is."""
        lane = rides[0].lane
        runner = self._runners[lane.digest]
        rows = sum(ride.rows for ride in rides)
        try:
            seen = runner.advance(rides)
        except Exception as error:
            if len(rides) == 1:
                job = self._job_of[rides[0]]
                self._fail(job.claim, error)
                self._leave(job)
                return []
            if is_out_of_memory(error):
                self._reduced[lane] = max(1, rows // 2)
                log.warning("out of memory with %d rows; calls are halved from now on", rows)
            else:
                log.warning("a call for %d parts failed; trying each half", len(rides))
            half = len(rides) // 2
            first = self._advance(rides[:half])
            # The first half may have ended a job that has rides in the second.
            return first + self._advance_those_left(rides[half:])
        labels = self._served[lane.digest].name, lane.call
        self._metrics.network_seconds[labels].observe(runner.seconds)
        self._metrics.batch_rows[labels].observe(rows)
        return seen

    def _advance_those_left(self, rides: Sequence[Ride]) -> list[Seen]:
        left = [ride for ride in rides if ride in self._job_of]
        return self._advance(left) if left else []

    def _hand_out(self, seen: Seen, now: float) -> None:
        ride = seen.ride
        job = self._job_of.get(ride)
        if job is None:  # another of its rides failed it in this tick
            return
        calls, progress = job.calls + ride.part.calls, ride.part.progress
        if job.reports.wants_preview(calls):
            self._tell(job, job.reports.preview(calls, progress, seen.images, *seen.own))
            if not job.told_preview:
                job.told_preview = True
                self._metrics.first_preview[job.labels].observe(job.age)
        step = job.reports.step(now, calls, progress)
        if step is not None:
            self._tell(job, step)
        self._evaluated[job.labels] += seen.rows.stop - seen.rows.start
        if ride.part.done:
            self._arrive(job, ride)

    def _arrive(self, job: ActiveJob, ride: Ride) -> None:
        """Keep a ride's result; with the last one the operation goes on, or is done."""
        job.results[job.rides.index(ride)] = ride.store.result(ride.part)
        self._alight(ride)
        if any(other in self._job_of for other in job.rides):
            return
        job.calls += max(other.part.calls for other in job.rides)
        try:
            job.course = job.operation.send(job.course.join(job.results))
        except StopIteration as end:
            self._succeed(job, end.value)
        except Exception as error:
            self._fail(job.claim, error)
            self._leave(job)
        else:
            self._board(job)

    def _alight(self, ride: Ride) -> None:
        ride.store.free(ride.part)
        self._scheduler.remove(ride)
        del self._job_of[ride]

    def _leave(self, job: ActiveJob) -> None:
        for ride in job.rides:
            if ride in self._job_of:
                self._alight(ride)
        job.operation.close()
        digest = job.served.header.digest
        self._shelf.unpin(digest)
        with self._changed:
            self._active.remove(job)
            if not any(other.served is job.served for other in self._active):
                # Nothing is left on the device, so that the shelf may unload the model.
                self._runners.pop(digest, None)
                self._served.pop(digest, None)
                self._metrics.rows_waiting[job.served.name].set(0)
            self._changed.notify_all()
        self.on_leave()

    def _succeed(self, job: ActiveJob, outcome: Outcome) -> None:
        seconds = time.monotonic() - job.arrival.since
        self._courier.send(job.claim, _delivery(job.claim, outcome, seconds))
        self._metrics.images[job.labels].inc(job.claim.job.rows)
        self._metrics.jobs[job.claim.job.operation, "succeeded"].inc()
        log.info("job %s (%s) done in %.3f s", job.claim.job.id, job.claim.job.operation, seconds)
        self._leave(job)

    def _tell(self, job: ActiveJob, report: Report) -> None:
        kind, data = report
        self._courier.send(job.claim, _event(job.claim, kind, data))

    def _fail(self, claim: Claim, error: Exception) -> None:
        """End a job with an error document; the log has the traceback."""
        if isinstance(error, NotFiniteError):
            title = "Not finite"
        elif is_out_of_memory(error):
            title = "Out of memory"
        elif isinstance(error, ModelError):
            title = "Model not available"
        else:
            title = "Failed"
        log.error("job %s failed", claim.job.id, exc_info=error)
        self._metrics.jobs[claim.job.operation, "failed"].inc()
        document = {"type": "about:blank", "title": title, "detail": f"{error}"}
        self._courier.send(claim, lambda: claim.fail(document))

    # For the scheduler

    def _capacity(self, lane: Lane) -> int:
        """Rows worth having in one call."""
        plain = not lane.reproducible and lane.divergence is None
        rows = self._served[lane.digest].curve.knee if plain else REPRODUCIBLE_ROWS
        return min(rows, self._reduced.get(lane, rows))

    def _cost(self, lane: Lane, rows: int) -> float:
        """Seconds of a call."""
        served = self._served[lane.digest]
        if lane.reproducible:
            rows = REPRODUCIBLE_ROWS * math.ceil(rows / REPRODUCIBLE_ROWS)
        seconds = served.curve.seconds_for(rows)
        match lane.divergence:
            case None:
                return seconds
            case int(products):
                pass
            case _:
                products = served.checkpoint.description.data.dimensions
        return seconds + products * _product_seconds(served.curve) * rows / REPRODUCIBLE_ROWS


def _product_seconds(curve: Curve) -> float:
    """One vector–Jacobian product of `REPRODUCIBLE_ROWS` rows."""
    forward = curve.seconds_for(REPRODUCIBLE_ROWS)
    if curve.gradient_seconds is None:
        return forward
    return max(0.0, curve.gradient_seconds - forward) / PROBES


def _event(claim: Claim, kind: str, data: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    return lambda: claim.event(kind, data())


def _delivery(claim: Claim, outcome: Outcome, seconds: float) -> Callable[[], None]:
    def deliver() -> None:
        for artifact in outcome.artifacts:
            claim.put_artifact(artifact.name, artifact.media_type, artifact.encode())
        claim.succeed({**outcome.result, "seconds": round(seconds, 3)})

    return deliver

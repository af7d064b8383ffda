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
from functools import partial
from typing import Any

from service.jobs import parameters as p
from service.jobs.lease import Claim
from service.jobs.parameters import PRIORITIES, Priority
from worker.active import ActiveJob, Arrival
from worker.courier import Courier
from worker.knee import PROBES, Curve
from worker.metrics import Metrics
from worker.operations import NotFiniteError, Outcome, legs, start
from worker.reports import Report, Reports
from worker.runner import Lane, Ride, Runner, Seen, is_out_of_memory
from worker.scheduler import Scheduler
from worker.shelf import ModelError, ServedModel, Shelf

log = logging.getLogger(__name__)

PART = 16
"""Rows of a job that advance together, at most."""

ROOM = 4
"""Full batches of rows that are claimed ahead, of each priority; the rest waits in Redis.

One alone while another process of the worker has nothing to do, so that it gets some of a burst.
"""


class Engine:
    """Runs jobs until it is stopped. `admit` may be called from any thread."""

    def __init__(
        self,
        shelf: Shelf,
        courier: Courier,
        metrics: Metrics | None = None,
        *,
        most_jobs: int | None = None,
        preview_rate: float = math.inf,
    ) -> None:
        """most_jobs: in flight at once; any number if left out. preview_rate: a second, of all."""
        self._shelf = shelf
        self._courier = courier
        self._metrics = metrics or Metrics()
        self._most_jobs = most_jobs
        self._preview_rate = preview_rate
        self._scheduler: Scheduler[Ride] = Scheduler(self._cost, self._capacity)
        self._runners: dict[str, Runner] = {}
        self._served: dict[str, ServedModel] = {}
        self._job_of: dict[Ride, ActiveJob] = {}
        self._next_count = 0.0
        self._evaluated: Counter[tuple[str, str]] = Counter()  # rows of this tick, by labels
        self._reduced: dict[Lane, int] = {}  # capacities that ran out of memory, halved
        self.failed = False
        """Whether its thread ended by a failure."""
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
        batches = 1 if self._shelf.cores.another_idles else ROOM
        return {priority: batches * batch - taken[priority] for priority in PRIORITIES}

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
            if self._stopping:
                self._courier.send(claim, claim.release)
                return
            self._shelf.pin(claim.job.digest)
            self._waiting.append(Arrival(claim=claim, inputs=inputs))
        self._prepare_waiting()

    def claims(self) -> list[Claim]:
        """The claims that must be kept alive."""
        with self._changed:
            return self._claims()

    def stop_job(self, claim: Claim, reason: str) -> None:
        """Make a job leave at the next tick: "requested", "abandoned", "deadline", "lost", …"""
        with self._changed:
            for job in (*self._prepared, *self._active):
                if job.claim is claim:
                    job.stop = job.stop or (reason, time.monotonic())
            waiting = next((a for a in self._waiting if a.claim is claim), None)
        if waiting is not None:
            self._turn_away(waiting, partial(self._stopped, claim, reason))

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
            waiting = [arrival for arrival in self._waiting if not arrival.taken]
        for arrival in waiting:
            try:
                served = self._shelf.request(arrival.claim.job.digest, self._prepare_waiting)
            except ModelError as error:
                self._turn_away(arrival, partial(self._fail, arrival.claim, error))
                continue
            with self._changed:
                mine = served is not None and not arrival.taken
                arrival.taken = arrival.taken or mine
            if served is not None and mine:
                self._prepare(arrival, served)

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
                reports=Reports(served.checkpoint.description.data, parameters, self._preview_rate),
                legs=legs(parameters),
                labels=(job.operation, served.name),
                due=arrival.due,
            )
        except Exception as error:
            self._turn_away(arrival, partial(self._fail, arrival.claim, error))
            return
        with self._changed:
            if arrival in self._waiting:  # nobody stopped it meanwhile
                self._waiting.remove(arrival)
                self._prepared.append(prepared)
                self._changed.notify_all()

    def _turn_away(self, arrival: Arrival, tell: Callable[[], None]) -> None:
        """Let a job go that has not started, once."""
        with self._changed:
            if arrival not in self._waiting:
                return
            tell()  # before it is off the list, so that its lease is kept
            self._waiting.remove(arrival)
            self._changed.notify_all()
        self._shelf.unpin(arrival.claim.job.digest)
        self.on_leave()

    def _stopped(self, claim: Claim, reason: str) -> None:
        """Tell of a job that was stopped; of one that is not this worker's there is no word."""
        if reason not in ("lost", "deleted"):
            self._courier.send(claim, partial(claim.cancel, reason))
            self._metrics.jobs[claim.job.operation, "canceled"].inc()

    # The engine's thread

    def _run(self) -> None:
        cores = self._shelf.cores
        try:
            while True:
                with self._changed:
                    if not (self._active or self._prepared):
                        cores.end()
                    self._changed.wait_for(lambda: self._stopping or self._active or self._prepared)
                    if self._stopping:
                        return
                cores.begin()
                self.tick()
        except BaseException:
            # Without its engine a worker would keep its leases and do nothing.
            log.critical("the engine failed; the worker stops", exc_info=True)
            self.failed = True
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
            try:
                self._board(job)
            except Exception as error:
                self._drop(job, error)

    def _board(self, job: ActiveJob) -> None:
        """Take the course that a job asks for into the device."""
        digest = job.served.header.digest
        runner = self._runners.get(digest)
        if runner is None:
            runner = self._runners[digest] = Runner(digest, job.served.denoiser)
        if job.course.rows == 0:
            raise ValueError("there is nothing to compute: the job has no rows")
        size = min(PART, self._capacity(Lane.of(digest, job.course)))
        if job.course.reproducible:
            size = min(size, job.served.denoiser.bucket)
        if len(job.course.condition.guided):
            size = max(1, size // 2)
        job.rides = runner.admit(job.course, size, job.claim.job.priority, job.arrival.since)
        job.results = [None] * len(job.rides)
        for ride in job.rides:
            self._job_of[ride] = job
            self._scheduler.add(ride)

    def _drop_stopped(self) -> None:
        now = time.monotonic()
        for job in list(self._active):
            if job.stop is None and now < job.due:
                continue
            reason, since = job.stop or ("deadline", job.due)
            self._stopped(job.claim, reason)
            self._leave(job)
            self._metrics.cancel_latency.observe(time.monotonic() - since)

    def _advance(self, rides: Sequence[Ride]) -> list[Seen]:
        """One network call; where it fails, smaller ones, down to the job whose fault it is."""
        pending: list[list[Ride]] = [list(rides)]
        seen: list[Seen] = []
        while pending:
            # A failure may have ended a job that has rides here as well.
            group = [ride for ride in pending.pop(0) if ride in self._job_of]
            if not group:
                continue
            failure = self._call(group, seen)
            if failure is None:
                continue
            if is_out_of_memory(failure):
                self._reduce(group)
            if len(group) == 1:
                self._drop(self._job_of[group[0]], failure)
            else:
                half = len(group) // 2
                pending[:0] = [group[:half], group[half:]]
        return seen

    def _call(self, group: Sequence[Ride], seen: list[Seen]) -> Exception | None:
        """Call the network and update the stores; what went wrong with the call, for smaller ones.

        Without its traceback, which would keep the failed call's memory.
        """
        lane, rows = group[0].lane, sum(ride.rows for ride in group)
        runner = self._runners[lane.digest]
        try:
            called = runner.call(group)
        except Exception as error:
            log.warning("a call for %d parts failed: %s", len(group), error)
            return error if len(group) == 1 else error.with_traceback(None)
        labels = self._served[lane.digest].name, lane.call
        self._metrics.network_seconds[labels].observe(called.seconds)
        self._metrics.batch_rows[labels].observe(rows)
        try:
            seen += runner.update(called)
        except Exception as error:
            for job in {self._job_of[ride] for ride in group}:
                self._drop(job, error)
        return None

    def _reduce(self, group: Sequence[Ride]) -> None:
        """Halve what a call may hold from now on, as long as jobs of the model are in flight."""
        lane, rows = group[0].lane, sum(ride.rows for ride in group)
        self._reduced[lane] = min(self._capacity(lane), max(1, rows // 2))
        log.warning("out of memory with %d rows; now at most %d", rows, self._reduced[lane])

    def _hand_out(self, seen: Seen, now: float) -> None:
        """Tell of a ride what it is to tell; take its result when it has arrived."""
        ride = seen.ride
        job = self._job_of.get(ride)
        if job is None:  # another of its rides failed it in this tick
            return
        self._evaluated[job.labels] += seen.rows.stop - seen.rows.start
        try:
            self._report(job, seen, now)
            if ride.part.done:
                self._arrive(job, ride)
        except Exception as error:
            self._drop(job, error)

    def _report(self, job: ActiveJob, seen: Seen, now: float) -> None:
        part = seen.ride.part
        calls = job.calls + part.calls
        if job.reports.wants_preview(calls, seen.ride, now, len(self._job_of)):
            self._tell(job, job.reports.preview(calls, job.progress, seen.images, *seen.own))
            if not job.told_preview:
                job.told_preview = True
                self._metrics.first_preview[job.labels].observe(job.age)
        if job.reports.wants_step(now, len(self._active)):
            self._tell(job, job.reports.step(job.calls_made, job.progress))

    def _arrive(self, job: ActiveJob, ride: Ride) -> None:
        """Keep a ride's result; with the last one the operation goes on, or is done."""
        job.results[job.rides.index(ride)] = ride.store.result(ride.part)
        self._alight(ride)
        if any(other in self._job_of for other in job.rides):
            return
        job.calls, job.past = job.calls_made, job.past + 1
        try:
            job.course = job.operation.send(job.course.join(job.results))
        except StopIteration as end:
            self._succeed(job, end.value)
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
        with self._changed:
            self._active.remove(job)
            last = not any(other.served is job.served for other in self._active)
            self._changed.notify_all()
        if last:  # nothing stays on the device, so that the shelf may unload the model
            self._runners.pop(digest, None)
            self._served.pop(digest, None)
            self._reduced = {lane: n for lane, n in self._reduced.items() if lane.digest != digest}
            self._metrics.rows_waiting[job.served.name].set(0)
        self._shelf.unpin(digest)
        self.on_leave()

    def _drop(self, job: ActiveJob, error: Exception) -> None:
        """A job that cannot go on."""
        self._fail(job.claim, error)
        self._leave(job)

    def _succeed(self, job: ActiveJob, outcome: Outcome) -> None:
        seconds = time.monotonic() - job.arrival.since
        about_all = {"calls": job.calls, "seconds": round(seconds, 3)}
        self._courier.send(job.claim, _delivery(job.claim, outcome, about_all))
        self._metrics.images[job.labels].inc(len(outcome.result["images"]))
        self._metrics.jobs[job.claim.job.operation, "succeeded"].inc()
        about = {"job_id": job.claim.job.id, "operation": job.claim.job.operation}
        log.info("done in %.3f s", seconds, extra=about)
        self._leave(job)

    def _tell(self, job: ActiveJob, report: Report) -> None:
        kind, data = report
        self._courier.send(job.claim, lambda: job.claim.event(kind, data()))

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
        about = {"job_id": claim.job.id, "operation": claim.job.operation}
        # What a request can bring about needs no trace of our own code.
        trace = None if isinstance(error, NotFiniteError | ModelError) else error
        log.error("failed: %s", error, exc_info=trace, extra=about)
        self._metrics.jobs[claim.job.operation, "failed"].inc()
        document = {"type": "about:blank", "title": title, "detail": f"{error}"}
        self._courier.send(claim, lambda: claim.fail(document))

    # For the scheduler

    def _capacity(self, lane: Lane) -> int:
        """Rows worth having in one call: a knee for this thread's cores, or a bucket for each."""
        served = self._served[lane.digest]
        if lane.reproducible or lane.divergence is not None:
            rows = served.denoiser.bucket * served.denoiser.buckets_at_once
        else:
            rows = int(served.curve.knee * self._shelf.cores.shares)
        return min(rows, self._reduced.get(lane, rows))

    def _cost(self, lane: Lane, rows: int) -> float:
        """Seconds of a call."""
        served = self._served[lane.digest]
        curve, bucket = served.curve, served.denoiser.bucket
        if not lane.reproducible and lane.divergence is None:
            return curve.seconds_for(math.ceil(rows / self._shelf.cores.shares))
        forward = curve.bucket_seconds or curve.seconds_for(bucket)
        match lane.divergence:
            case None:
                products = 0
            case int(products):
                pass
            case _:
                products = served.checkpoint.description.data.dimensions
        calls = math.ceil(rows / bucket / served.denoiser.buckets_at_once)
        return calls * (forward + products * _product_seconds(curve, forward))


def _product_seconds(curve: Curve, forward: float) -> float:
    """One vector–Jacobian product of a bucket's rows, whose forward takes so long."""
    if curve.gradient_seconds is None:
        return forward
    return max(0.0, curve.gradient_seconds - forward) / PROBES


def _delivery(claim: Claim, outcome: Outcome, about_all: dict[str, Any]) -> Callable[[], None]:
    def deliver() -> None:
        for artifact in outcome.artifacts:
            claim.put_artifact(artifact.name, artifact.media_type, artifact.encode())
        claim.succeed(outcome.result | about_all)

    return deliver

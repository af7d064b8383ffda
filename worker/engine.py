"""The engine: one thread owns the device and advances all active jobs together.

A tick asks every active job for its next query, merges the queries that fit together into one
network call each, and sends the answers back. Jobs join and leave between any two ticks. What a
job produces is handed to the courier, so that encoding pictures and talking to Redis never stop
the device.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from model.query import Answer, Operation, Query
from service.jobs import parameters as p
from service.jobs.lease import Claim
from worker.batch import merge, split
from worker.courier import Courier
from worker.operations import NotFiniteError, Outcome, start
from worker.reports import Reports
from worker.shelf import ServedModel, Shelf

log = logging.getLogger(__name__)

ROOM = 64
"""Rows in flight up to which new jobs are claimed; beyond it they wait in Redis, in order."""


@dataclass(eq=False, kw_only=True)
class ActiveJob:
    """A claimed job on its way.

    query: what it asks next. stop: why it must leave at the next tick, None while it may stay.
    """

    claim: Claim
    served: ServedModel
    operation: Operation[Outcome]
    query: Query
    reports: Reports
    started: float = field(default_factory=time.monotonic)
    stop: str | None = None

    @property
    def batch_key(self) -> Hashable:
        """Queries with equal keys go into one network call."""
        query = self.query
        probes = None if query.probes is None else query.probes.shape[1]
        return self.served.checkpoint.digest, query.reproducible, query.exact_trace, probes


class Engine:
    """Runs jobs until it is stopped. `admit` may be called from any thread."""

    def __init__(self, shelf: Shelf, courier: Courier) -> None:
        self._shelf = shelf
        self._courier = courier
        self._active: list[ActiveJob] = []
        self._arrivals: list[tuple[Claim, bytes | None]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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
            unfinished = [*(job.claim for job in self._active), *(c for c, _ in self._arrivals)]
            self._active, self._arrivals = [], []
        for claim in unfinished:
            self._courier.send(claim, claim.release)

    def wait_for_room(self) -> bool:
        """Block until another job may be claimed; False when the engine is stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self.has_room())
            return not self._stopping

    def admit(self, claim: Claim, inputs: bytes | None) -> None:
        """Take over a claimed job with its packed arrays; it starts at the next tick."""
        with self._changed:
            if not self._stopping:
                self._arrivals.append((claim, inputs))
                self._changed.notify_all()
                return
        self._courier.send(claim, claim.release)

    def claims(self) -> list[Claim]:
        """The claims that must be kept alive."""
        with self._changed:
            return [*(job.claim for job in self._active), *(claim for claim, _ in self._arrivals)]

    def stop_job(self, claim: Claim, reason: str) -> None:
        """Make a job leave at the next tick: "cancel" or "lost"."""
        with self._changed:
            for job in self._active:
                if job.claim is claim:
                    job.stop = reason

    def has_room(self) -> bool:
        """Whether another job may be claimed now."""
        # The size of a job that has not started is known for /generate only.
        coming = sum(claim.job.parameters.get("count", ROOM) for claim, _ in self._arrivals)
        rows = sum(len(job.query.u) for job in self._active)
        return bool(coming + rows < ROOM)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or self._active or self._arrivals)
                    if self._stopping:
                        return
                self.tick()
        except BaseException:
            # Without its engine a worker would keep its leases and do nothing.
            log.critical("the engine failed; the worker stops", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def tick(self) -> None:
        """Admit, drop what must stop, run the network once a group, hand out."""
        self._admit_arrivals()
        self._drop_stopped()
        groups: dict[Hashable, list[ActiveJob]] = defaultdict(list)
        for job in self._active:
            groups[job.batch_key].append(job)
        for group in groups.values():
            for job, answer in zip(group, self._answers(group), strict=True):
                if answer is not None:
                    self._advance(job, answer)
        with self._changed:
            self._changed.notify_all()

    def _admit_arrivals(self) -> None:
        with self._changed:
            arrivals, self._arrivals = self._arrivals, []
        for claim, inputs in arrivals:
            try:
                job = self._begin(claim, inputs)
            except Exception as error:
                self._fail(claim, error)
                continue
            with self._changed:
                self._active.append(job)

    def _begin(self, claim: Claim, inputs: bytes | None) -> ActiveJob:
        served = self._shelf.models[claim.job.digest]
        parameters = p.OPERATIONS[claim.job.operation].model_validate(claim.job.parameters)
        operation = start(served, parameters, inputs)
        return ActiveJob(
            claim=claim,
            served=served,
            operation=operation,
            query=next(operation),
            reports=Reports(served.checkpoint.description.data, parameters),
        )

    def _drop_stopped(self) -> None:
        for job in [job for job in self._active if job.stop is not None]:
            if job.stop == "cancel":
                claim = job.claim
                self._courier.send(claim, lambda claim=claim: claim.cancel("requested"))  # type: ignore[misc]
            self._leave(job)

    def _answers(self, group: list[ActiveJob]) -> list[Answer] | list[None]:
        """One network call for the group; where it fails, one a job, to find whose fault it is."""
        queries = [job.query for job in group]
        denoiser = group[0].served.denoiser
        try:
            return split(denoiser(merge(queries)), queries)
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0].claim, error)
                self._leave(group[0])
                return [None]
            log.warning("a batch of %d jobs failed; trying them one by one", len(group))
            return [self._answers([job])[0] for job in group]  # type: ignore[return-value]

    def _advance(self, job: ActiveJob, answer: Answer) -> None:
        try:
            for kind, data in job.reports.after(job.query, answer):
                self._courier.send(job.claim, _event(job.claim, kind, data))
            job.query = job.operation.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            seconds = time.monotonic() - job.started
            self._courier.send(job.claim, _delivery(job.claim, outcome, seconds))
            log.info(
                "job %s (%s) done in %.3f s", job.claim.job.id, job.claim.job.operation, seconds
            )
            self._leave(job)
        except Exception as error:
            self._fail(job.claim, error)
            self._leave(job)

    def _leave(self, job: ActiveJob) -> None:
        job.operation.close()
        with self._changed:
            self._active.remove(job)

    def _fail(self, claim: Claim, error: Exception) -> None:
        """End a job with an error document; the log has the traceback."""
        if isinstance(error, NotFiniteError):
            title = "Not finite"
        elif isinstance(error, torch.OutOfMemoryError):
            title = "Out of memory"
        else:
            title = "Failed"
        log.error("job %s failed", claim.job.id, exc_info=error)
        document = {"type": "about:blank", "title": title, "detail": f"{error}"}
        self._courier.send(claim, lambda: claim.fail(document))


def _event(claim: Claim, kind: str, data: Callable[[], dict[str, Any]]) -> Callable[[], None]:
    return lambda: claim.event(kind, data())


def _delivery(claim: Claim, outcome: Outcome, seconds: float) -> Callable[[], None]:
    def deliver() -> None:
        for artifact in outcome.artifacts:
            claim.put_artifact(artifact.name, artifact.media_type, artifact.encode())
        claim.succeed({**outcome.result, "seconds": round(seconds, 3)})

    return deliver

"""The engine in process: the jobs of figure 1 without HTTP, Redis or Celery.

`python -m benchmarks.serve.engine_alone --clients 64 --seconds 60` writes records as JSON, as the
clients of the whole system do. The pictures are encoded as in a worker and then dropped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import threading
import time
from typing import Any, cast

from benchmarks.serve.load import START_UP, records_of
from benchmarks.serve.options import window_of
from benchmarks.serve.processes import outputs, python
from benchmarks.serve.summary import Record
from service.jobs.job import Job
from service.jobs.lease import Claim
from service.jobs.parameters import GenerateParameters


def drive(clients: int, steps: int, seconds: float, processes: int = 1) -> list[Record]:
    """The records of jobs in processes of their own, which share clients and cores.

    Raises BenchError.
    """
    own = clients // processes
    arguments = ["--clients", str(own), "--steps", str(steps), "--seconds", str(seconds)]
    command = python("benchmarks.serve.engine_alone", *arguments)
    limit = window_of(seconds).end + 2 * START_UP
    return [record for out in outputs(command, limit, processes) for record in records_of(out)]


class LocalClaim:
    """A claim as the engine and the courier use it, of a job that is in no store."""

    def __init__(self, job: Job, clients: Clients, client: int) -> None:
        self.job = job
        self._clients, self._client = clients, client
        self._started = clients.now()

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Nobody listens."""

    def put_artifact(self, name: str, media_type: str, data: bytes) -> None:
        """Nobody keeps it."""

    def succeed(self, result: dict[str, Any]) -> None:
        """The client has its image, and asks for the next one."""
        self._end(images=len(result["images"]), error=None)

    def fail(self, error: dict[str, Any]) -> None:
        """The client has its answer, and asks again."""
        self._end(images=0, error=str(error))

    def release(self, reason: str = "") -> None:
        """The engine stops before the job has finished: there is no record of it."""

    def _end(self, images: int, error: str | None) -> None:
        now = self._clients.now()
        index, started = self._client, self._started
        record = Record(index=index, started=started, ended=now, images=images, error=error)
        self._clients.answered(self._client, record)


class Clients:
    """A closed loop without HTTP: every answer brings the client's next job."""

    def __init__(self, count: int, steps: int, seconds: float) -> None:
        import torch

        from model.cores import start_threads
        from worker.courier import Courier
        from worker.engine import Engine
        from worker.shelf import SHIPPED, Shelf
        from worker.threads import CORES, share_interpreter, use_one_core

        use_one_core()
        share_interpreter()
        start_threads(CORES)
        self.count, self.steps, self.window = count, steps, window_of(seconds)
        self.records: list[Record] = []
        shelf = Shelf(SHIPPED, torch.device("cpu"))
        self._served = next(m for m in shelf.models.values() if m.name == "digits")
        self._courier = Courier()
        self._engine = Engine(shelf, self._courier)
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds since the clients began."""
        return time.monotonic() - self._began

    def run(self) -> None:
        """Start the clients one after another, and stop all when the window is over."""
        self._courier.start()
        self._engine.start()
        self._began = time.monotonic()
        for client in range(self.count):
            self.ask(client)
            time.sleep(self.window.start / 2 / self.count)
        time.sleep(max(self.window.end - self.now(), 0))
        self._engine.stop()
        self._courier.stop(START_UP)

    def ask(self, client: int) -> None:
        """Hand the engine a client's next job."""
        served = self._served
        body = {
            "model": served.name,
            "seed": client,
            "sampler": {"name": "ddpm", "steps": self.steps},
        }
        job = Job(
            id=f"{client}-{threading.get_ident()}-{time.monotonic_ns()}",
            operation="generate",
            model=served.name,
            digest=served.checkpoint.digest,
            parameters=GenerateParameters.model_validate(body).model_dump(mode="json"),
        )
        self._engine.admit(cast(Claim, LocalClaim(job, self, client)), None)

    def answered(self, client: int, record: Record) -> None:
        """Keep the record, and go on while there is time."""
        self.records.append(record)
        if record.error is None and self.now() < self.window.end:
            self.ask(client)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    clients = Clients(given.clients, given.steps, given.seconds)
    clients.run()
    json.dump([dataclasses.asdict(record) for record in clients.records], sys.stdout)


if __name__ == "__main__":
    main()

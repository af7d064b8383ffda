"""The workers' side of the streams, a process of its own: `python -m benchmarks.api.writer`.

Reads a JSON document {jobs, events, rate} from standard input: how many jobs, and how many events
each tells at how many a second. Submits and claims the jobs, says their ids, waits for a line, then
writes what as many running jobs would: a step every time, and a preview every fifth.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import json
import os
import sys
import time
from typing import Any

from service.jobs.job import Job, new_job_id
from service.jobs.lease import Claim, WorkerStore
from service.jobs.redis_store import RedisJobStore, RedisWorkerStore
from service.settings import Settings

CARD: dict[str, Any] = {
    "name": "digits",
    "digest": "sha256:digits",
    "shape": [1, 8, 8],
    "levels": 17,
    "low": -1.0,
    "high": 1.0,
    "class_names": [str(digit) for digit in range(10)],
}
RATE = 2000.0  # row-calls a second that the worker says it makes
PREVIEW = base64.b64encode(os.urandom(1500)).decode()  # of one picture
LONG = 1e6  # seconds


def worker(settings: Settings) -> WorkerStore:
    """A worker's store, alive to all appearances, that takes no hints."""
    store = RedisWorkerStore(settings, "bench", lambda job_id: None)
    store.announce([CARD], LONG, {CARD["digest"]: RATE})
    return store


async def submit(settings: Settings, jobs: int) -> None:
    """Queue jobs."""
    store = RedisJobStore(settings)
    for _ in range(jobs):
        parameters = {"model": CARD["name"]}
        await store.submit(
            Job(new_job_id(), "generate", CARD["name"], CARD["digest"], parameters=parameters)
        )
    await store.close()


def write(claims: list[Claim], events: int, rate: float) -> float:
    """Tell so many events of each job at this rate; the seconds that it fell behind at most."""
    start = time.monotonic() + 0.2
    # Each job at its own phase, as jobs that were not started together.
    due = [(start + k / len(claims) / rate, 0, k) for k in range(len(claims))]
    heapq.heapify(due)
    behind = 0.0
    while due:
        when, n, k = heapq.heappop(due)
        if (pause := when - time.monotonic()) > 0:
            time.sleep(pause)
        behind = max(behind, -pause)
        told: dict[str, Any] = {"n": n, "t": time.time(), "calls": n, "progress": n / events}
        if n % 5 == 4:
            told |= {"what": "x0", "images": [{"index": 0, "png": PREVIEW}]}
        claims[k].event("preview" if n % 5 == 4 else "step", told)
        if n + 1 < events:
            heapq.heappush(due, (when + 1 / rate, n + 1, k))
    return behind


def main() -> None:
    given = json.loads(sys.stdin.readline())
    settings = Settings(lease=LONG, stream_length=10 * given["events"] + 100, max_previews=1000)
    store = worker(settings)
    asyncio.run(submit(settings, given["jobs"]))
    rooms = {"interactive": 1, "batch": 1}
    claims = [store.claim([CARD["digest"]], rooms) for _ in range(given["jobs"])]
    owned = [claim for claim in claims if claim is not None]
    print(json.dumps([claim.job.id for claim in owned]), flush=True)
    sys.stdin.readline()
    behind = write(owned, given["events"], given["rate"])
    for claim in owned:
        claim.succeed({"images": []})
    print(json.dumps({"behind": behind}), flush=True)


if __name__ == "__main__":
    main()

"""The clients: a closed loop of HTTP requests from a process of its own.

`python -m benchmarks.serve.load` reads a `Load` as JSON on standard input and writes the records
of its requests as JSON on standard output. A client sends its next request when it has all of
the answer to its last one: the finished job *and* its images.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.serve.errors import BenchError
from benchmarks.serve.processes import ROOT, bound, environment, python, say
from benchmarks.serve.summary import Record

WAIT = 600
"""Seconds that one answer may take."""

START_UP = 30.0
"""Seconds that the process may take on top of its load."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A POST of a JSON body; `images` is how many images it asks for."""

    path: str
    body: dict[str, Any]
    images: int = 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients do.

    requests: sent in order, from the first one again after the last. ramp: seconds over which
    the clients start. seconds: how long they send. total: how many requests they send at most.
    drain: seconds that unanswered requests then get; what is still unanswered leaves no record.
    """

    base_url: str
    requests: Sequence[Request]
    clients: int
    seconds: float
    ramp: float = 0.0
    total: int | None = None
    drain: float = WAIT

    @property
    def limit(self) -> float:
        """Seconds after which the whole load is over, whatever happens."""
        return self.seconds + self.drain + START_UP


Ask = Callable[[httpx.AsyncClient, Request], Awaitable[None]]


async def ask_fokker(client: httpx.AsyncClient, request: Request) -> None:
    """Send a request, wait for its job, fetch every image (not the grid that shows them all)."""
    headers = {"Prefer": f"wait={WAIT}"}
    answer = await client.post(request.path, json=request.body, headers=headers)
    answer.raise_for_status()
    job = answer.json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"the job ended as {job['status']}: {job['error']}")
    for name, link in job["links"]["artifacts"].items():
        if not name.startswith("grid."):
            (await client.get(link)).raise_for_status()


async def ask_plain(client: httpx.AsyncClient, request: Request) -> None:
    """Send a request whose answer holds the images."""
    answer = (await client.post(request.path, json=request.body)).raise_for_status().json()
    if len(answer["images"]) != request.images:
        raise RuntimeError(f"{len(answer['images'])} images instead of {request.images}")


def ask_of(request: Request) -> Ask:
    """How a request is sent: the peer's one path answers at once, ours makes a job."""
    return ask_plain if request.path == "/predict" else ask_fokker


class Clients:
    """The clients of a load over one HTTP client, and the records of their requests so far."""

    def __init__(self, load: Load, http: httpx.AsyncClient) -> None:
        self.records: list[Record] = []
        self._load, self._http = load, http
        self._numbers = iter(range(sys.maxsize if load.total is None else load.total))
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Start all, and stop them when the load is over or a request failed."""
        load = self._load
        tasks = [
            asyncio.create_task(self._loop(load.ramp * client / load.clients))
            for client in range(load.clients)
        ]
        limit = load.seconds + load.drain
        await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # failures are in the records

    async def _loop(self, delay: float) -> None:
        await asyncio.sleep(delay)
        while self.now() < self._load.seconds and (n := next(self._numbers, None)) is not None:
            await self._send(n % len(self._load.requests))

    async def _send(self, index: int) -> None:
        """Send one request and record it. Raises BenchError if it failed."""
        request, started, error = self._load.requests[index], self.now(), None
        try:
            await ask_of(request)(self._http, request)
        except httpx.HTTPStatusError as refused:
            error = f"{refused}: {refused.response.text[:500]}"
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
        ended, images = self.now(), request.images
        self.records.append(
            Record(index=index, started=started, ended=ended, images=images, error=error)
        )
        if error is not None:
            raise BenchError(error)


async def run(load: Load) -> list[Record]:
    """Run the load; gives the records in the order in which the requests ended."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=load.clients)
    async with httpx.AsyncClient(
        base_url=load.base_url, timeout=WAIT, limits=limits, trust_env=False
    ) as http:
        clients = Clients(load, http)
        await clients.run()
    return clients.records


def spawn(load: Load) -> subprocess.Popen[str]:
    """Start the clients' process and tell it its load."""
    process = subprocess.Popen(
        python("benchmarks.serve.load"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        preexec_fn=bound(),
    )
    assert process.stdin is not None  # for the type checker: it was asked for above
    json.dump(dataclasses.asdict(load), process.stdin)
    process.stdin.close()
    process.stdin = None  # `communicate` would close it again
    return process


def collect(process: subprocess.Popen[str], limit: float) -> list[Record]:
    """The records of a load's process; raises BenchError if it or one of its requests failed."""
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as late:
        raise BenchError(f"the clients were not done after {limit:.0f} s") from late
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise BenchError(f"the clients' process ended with {process.returncode}")
    return records_of(out)


def records_of(out: str) -> list[Record]:
    """The records that a load's process printed; raises BenchError if a request failed."""
    records = [Record(**record) for record in json.loads(out)]
    failed = [record for record in records if record.error is not None]
    if failed:
        raise BenchError(f"{len(failed)} of {len(records)} requests failed: {failed[0].error}")
    return records


def drive(load: Load) -> list[Record]:
    """Run a load in a process of its own to its end. Raises BenchError."""
    records = collect(spawn(load), load.limit)
    say(f"    {load.clients} clients: {len(records)} requests answered")
    return records


@contextmanager
def background(load: Load) -> Iterator[None]:
    """Keep a load on while the block runs; raises BenchError if it ended before the block did."""
    process = spawn(load)
    try:
        yield
        if process.poll() is not None:
            collect(process, START_UP)
            raise BenchError("the load in the background ended too early")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    given = json.load(sys.stdin)
    requests = [Request(**request) for request in given.pop("requests")]
    records = asyncio.run(run(Load(requests=requests, **given)))
    with suppress(BrokenPipeError):
        json.dump([dataclasses.asdict(record) for record in records], sys.stdout)


if __name__ == "__main__":
    main()

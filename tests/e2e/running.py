"""The running system as the tests hold it: its processes, and a client of its API."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from httpx_sse import ServerSentEvent, connect_sse

START_LIMIT = 60.0  # seconds; a worker loads torch and its models
JOB_LIMIT = 100.0
STOP_LIMIT = 20.0
FINAL = {"succeeded", "failed", "canceled", "aborted"}

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, limit: float = START_LIMIT) -> T:
    """The first true value of `condition`; fails after `limit` seconds, saying for `what`."""
    end = time.monotonic() + limit
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit:.0f} s in vain for {what}")
        time.sleep(0.02)
    return value


class Part:
    """`fokker ARGUMENTS` as a process in a group of its own; its output goes to a file."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.out = folder / f"{arguments[0]}.out"
        self.err = folder / f"{arguments[0]}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | environment,
                start_new_session=True,
            )

    def kill_group(self) -> None:
        """SIGKILL to the process and all that it started in its group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_LIMIT)

    def stop(self) -> None:
        """End it if it still runs: SIGTERM, and SIGKILL when that does not help."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.kill_group()

    def alive(self) -> bool:
        """Whether it runs; fails with its last words if it ended."""
        if self.process.poll() is not None:
            raise AssertionError(
                f"{self.process.args} ended with {self.process.returncode}:\n"
                + self.err.read_text(errors="replace")[-2000:]
            )
        return True


@dataclass
class Service:
    """An API over a Redis; `client` talks to it."""

    redis_url: str
    folder: Path
    api: Part
    client: httpx.Client

    def start_worker(self, **environment: str) -> Part:
        """Start a worker and wait until the API is ready."""
        worker = Part(self.folder, "worker", FOKKER_REDIS_URL=self.redis_url, **environment)
        wait_until(lambda: worker.alive() and self.ready() == 200, "a ready worker")
        return worker

    def ready(self) -> int | None:
        """The status of /readyz, None while nobody listens."""
        try:
            return self.client.get("/readyz").status_code
        except httpx.TransportError:
            return None

    def submit(
        self, path: str, request: dict[str, Any], images: Sequence[np.ndarray] = ()
    ) -> dict[str, Any]:
        """POST a request, with images (H, W) in levels as `.npy` files; the queued job."""
        if len(images):
            files = [("image", (f"{i}.npy", npy(image))) for i, image in enumerate(images)]
            response = self.client.post(path, data={"request": json.dumps(request)}, files=files)
        else:
            response = self.client.post(path, json=request)
        assert response.status_code == 202, response.text
        return response.json()

    def get(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job as it stands."""
        return self.client.get(job["links"]["self"]).raise_for_status().json()

    def finished(self, job: dict[str, Any], limit: float = JOB_LIMIT) -> dict[str, Any]:
        """The job when it has come to its end, whichever."""

        def ended() -> dict[str, Any] | None:
            now = self.get(job)
            return now if now["status"] in FINAL else None

        return wait_until(ended, f"the end of {job['operation']} {job['id']}", limit)

    def succeeded(self, job: dict[str, Any], limit: float = JOB_LIMIT) -> dict[str, Any]:
        """The job when it has succeeded; fails with its error if it did not."""
        ended = self.finished(job, limit)
        assert ended["status"] == "succeeded", ended["error"]
        return ended

    def artifact(self, job: dict[str, Any], name: str) -> bytes:
        """The bytes of a finished job's artifact."""
        return self.client.get(job["links"]["artifacts"][name]).raise_for_status().content

    def array(self, job: dict[str, Any], name: str) -> np.ndarray:
        """A `.npy` artifact."""
        return np.load(io.BytesIO(self.artifact(job, name)))

    def events(self, job: dict[str, Any], limit: float = JOB_LIMIT) -> Iterator[ServerSentEvent]:
        """The job's events, to the last one; fails if they take longer than `limit` seconds."""
        end = time.monotonic() + limit
        with connect_sse(self.client, "GET", job["links"]["events"], timeout=limit) as source:
            for event in source.iter_sse():
                assert time.monotonic() < end, f"events of {job['id']} for more than {limit} s"
                yield event


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()

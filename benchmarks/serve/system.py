"""The whole service on this machine: a private Redis, workers and the API, on free ports."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serve.errors import SkippedError
from benchmarks.serve.load import WAIT, Request
from benchmarks.serve.processes import environment, python, running, wait_until
from service.redis_server import free_port, private_redis

READY_LIMIT = 120.0  # seconds; a worker loads torch and measures its models


@dataclass(frozen=True, kw_only=True)
class System:
    """A running service. worker: the id of its worker's process."""

    url: str
    worker: int
    metrics_port: int

    def resident_megabytes(self) -> float:
        """What the worker's process and its children occupy of the memory, in 10⁶ bytes."""
        process = psutil.Process(self.worker)
        family = [process, *process.children(recursive=True)]
        return float(sum(member.memory_info().rss for member in family)) / 1e6

    def metric(self, name: str) -> float:
        """The sum of a metric of the worker over its labels. Raises SkippedError."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        try:
            text = httpx.get(url, timeout=10, trust_env=False).raise_for_status().text
        except httpx.HTTPError as error:
            raise SkippedError(
                f"the worker exposes no metrics on FOKKER_WORKER_METRICS_PORT ({error})"
            ) from error
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        found = [sample.value for sample in samples if sample.name == name]
        if not found:
            raise SkippedError(f"the worker's metrics have no {name}")
        return sum(found)

    def knows_priority(self) -> bool:
        """Whether requests may say their class."""
        document = httpx.get(f"{self.url}/openapi.json", timeout=30, trust_env=False).json()
        return "priority" in document["components"]["schemas"]["GenerateParameters"]["properties"]


@contextmanager
def fokker(
    variables: Mapping[str, str] | None = None, models: Path | None = None
) -> Iterator[System]:
    """Run the service while the block runs. variables: the worker's own; models: a folder."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fokker-bench-")))
        server, port, metrics_port = private_redis(), free_port(), free_port()
        everyone = environment(FOKKER_REDIS_URL=server.url, FOKKER_MAX_WAIT=str(WAIT))
        command = [server.executable, "-"]
        redis = stack.enter_context(running("redis", command, folder, everyone, server.config))
        chosen = [] if models is None else ["--models", str(models)]
        theirs = (
            everyone | {"FOKKER_WORKER_METRICS_PORT": str(metrics_port)} | dict(variables or {})
        )
        command = python("service", "worker", *chosen)
        worker = stack.enter_context(running("worker", command, folder, theirs))
        command = python("service", "serve", "--port", str(port))
        api = stack.enter_context(running("api", command, folder, everyone))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ready(url), "the service to be ready", READY_LIMIT, redis, worker, api)
        yield System(url=url, worker=worker.pid, metrics_port=metrics_port)


def ready(url: str) -> bool:
    """Whether the service says that it can take requests."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def generate(
    seed: int,
    steps: int = 250,
    count: int = 1,
    model: str = "digits",
    sampler: str = "ddpm",
    **more: Any,
) -> Request:
    """A request for `count` images."""
    chosen = {"name": sampler, "steps": steps}
    body = {"model": model, "count": count, "seed": seed, "sampler": chosen} | more
    return Request(path="/generate", body=body, images=count)

"""What a worker tells Prometheus: names, labels and buckets of its metrics, and their exporter.

Processes of one worker count for themselves, in files that its exporter adds up. Labels never hold
a job's id.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
    values,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from service.jobs.job import FINISHED
from service.jobs.parameters import OPERATIONS
from service.settings import SettingsError

Metric = TypeVar("Metric", bound=MetricWrapperBase)

FORWARD, GRADIENT = "forward", "gradient"
"""The two kinds of network call: plain rows, and rows that need products with the Jacobian."""

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CALL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_WAIT = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Labelled(dict[str | tuple[str, ...], Metric], Generic[Metric]):
    """The children of a metric by their labels' values, each bound once: `found["digits"].inc()`.

    A metric with two labels takes a pair.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def __missing__(self, values: str | tuple[str, ...]) -> Metric:
        child = self._metric.labels(*([values] if isinstance(values, str) else values))
        return self.setdefault(values, child)


class Metrics:
    """The metrics of one process; all may be used from any thread. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        # By the engine, every tick
        self.batch_rows = self._histogram(
            "fokker_batch_rows", "Rows of a network call.", _ROWS, "model", "call"
        )
        self.network_seconds = self._histogram(
            "fokker_network_seconds", "Seconds of a network call.", _CALL, "model", "call"
        )
        self.tick_seconds = Histogram(
            "fokker_tick_seconds",
            "Seconds of a tick: its network calls and all else.",
            buckets=_CALL,
            registry=self.registry,
        )
        self.rows_waiting = self._gauge(
            "fokker_rows_waiting", "Rows claimed that are in no batch yet.", "livesum", "model"
        )
        self.nfe = self._counter(
            "fokker_nfe", "Network evaluations of single rows.", "operation", "model"
        )

        # By the engine, for every job
        self.queue_wait = self._histogram(
            "fokker_queue_wait_seconds",
            "From a job's submission to its first tick.",
            _WAIT,
            "operation",
            "model",
        )
        self.first_preview = self._histogram(
            "fokker_time_to_first_preview_seconds",
            "From a job's submission to its first preview.",
            _WAIT,
            "operation",
            "model",
        )
        self.cancel_latency = Histogram(
            "fokker_cancel_latency_seconds",
            "From the worker's learning of a cancellation to the job's rows being free.",
            buckets=_CALL,
            registry=self.registry,
        )
        self.images = self._counter("fokker_images", "Images finished.", "operation", "model")
        self.jobs = self._counter(
            "fokker_jobs", "Jobs that this worker ended.", "operation", "status"
        )

        # By the shelf
        self.model_loaded = self._gauge(
            "fokker_model_loaded",
            "1 while a model is in memory, 0 while it is not.",
            "livemax",
            "model",
        )
        self.knee_rows = self._gauge(
            "fokker_knee_rows", "Rows past which a row of a call costs no less.", "livemax", "model"
        )

        # A rate sees the first failure only where it saw a 0 before.
        for operation in OPERATIONS:
            for status in FINISHED:
                self.jobs[operation, status.value].inc(0)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], *labels: str
    ) -> Labelled[Histogram]:
        return Labelled(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def _gauge(
        self, name: str, text: str, across: Literal["livesum", "livemax"], *labels: str
    ) -> Labelled[Gauge]:
        """across: what becomes of the values of several processes."""
        return Labelled(Gauge(name, text, labels, registry=self.registry, multiprocess_mode=across))

    def _counter(self, name: str, text: str, *labels: str) -> Labelled[Counter]:
        return Labelled(Counter(name, text, labels, registry=self.registry))


@contextmanager
def exported(
    collector: Collector, pids: Sequence[int], host: str, port: int | None
) -> Iterator[int | None]:
    """Serve metrics over HTTP while the block runs; gives the port, chosen by the system for 0.

    collector: of a worker's metrics; pids: of its processes; port: None serves nothing. Raises
    `SettingsError` when the address cannot be listened on.
    """
    if port is None:
        yield None
        return
    registry = CollectorRegistry()
    registry.register(collector)
    registry.register(Family(pids))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(
            f"FOKKER_WORKER_METRICS_PORT: cannot listen on {host}:{port}: {error}; every "
            "worker of a machine needs a port of its own"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Family(Collector):
    """prometheus_client's metrics of a process (memory, time, …), of all that a worker has."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._of = [ProcessCollector(pid=lambda pid=pid: pid, registry=None) for pid in pids]  # type: ignore[misc]

    def collect(self) -> Iterator[MetricFamily]:
        """Sums, but for when the first began and what one may have."""
        found: dict[str, list[MetricFamily]] = defaultdict(list)
        for family in (family for collector in self._of for family in collector.collect()):
            found[family.name].append(family)
        for name, families in found.items():
            one = name in ("process_start_time_seconds", "process_max_fds")
            every = [family.samples[0] for family in families]
            total = (min if one else sum)(sample.value for sample in every)
            families[0].samples = [every[0]._replace(value=total)]
            yield families[0]


def count_in(folder: str) -> None:
    """What this process counts from now on stands in files of a folder, for its worker's exporter.

    Read by prometheus_client's `MultiProcessCollector`, which says how. Metrics that were made
    before are not among them.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    # As it was chosen when that was imported.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]

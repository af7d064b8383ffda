"""What a worker tells Prometheus: names, labels and buckets of its metrics, and their exporter.

Every worker has a registry of its own; labels never hold a job's id.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics import MetricWrapperBase

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
    """The metrics of one worker; all may be used from any thread. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

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
            "fokker_rows_waiting", "Rows claimed that are in no batch yet.", "model"
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
            "fokker_model_loaded", "1 while a model is in memory, 0 while it is not.", "model"
        )
        self.knee_rows = self._gauge(
            "fokker_knee_rows", "Rows past which a row of a call costs no less.", "model"
        )

        # A rate sees the first failure only where it saw a 0 before.
        for operation in OPERATIONS:
            for status in FINISHED:
                self.jobs[operation, status.value].inc(0)

    def serve(self, host: str, port: int) -> int:
        """Serve the metrics over HTTP until `close`; the port, chosen by the system for 0.

        Raises `SettingsError` when the address cannot be listened on.
        """
        try:
            self._server, self._thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise SettingsError(
                f"FOKKER_WORKER_METRICS_PORT: cannot listen on {host}:{port}: {error}; every "
                "worker of a machine needs a port of its own"
            ) from error
        return self._server.server_port

    def close(self) -> None:
        """Stop serving; the metrics themselves stay."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], *labels: str
    ) -> Labelled[Histogram]:
        return Labelled(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Labelled[Gauge]:
        return Labelled(Gauge(name, text, labels, registry=self.registry))

    def _counter(self, name: str, text: str, *labels: str) -> Labelled[Counter]:
        return Labelled(Counter(name, text, labels, registry=self.registry))

"""What the API counts of itself, in this process or in all that share its port."""

import os
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client keeps the figures of several processes. It reads this environment
variable when it is imported, so the server sets it before it starts them."""


class ApiMetrics:
    """The figures of one process, which any of those that share a port can give for all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fokker_http_requests",
            "Requests answered, by the route and the status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "fokker_http_seconds",
            "Seconds from a request to the head of its answer.",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.streams_open = Gauge(
            "fokker_streams_open",
            "Event streams that are open now.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def counted(self) -> Collector:
        """The figures of all processes that share this one's port."""
        if SHARED_FOLDER in os.environ:
            return MultiProcessCollector(CollectorRegistry())  # type: ignore[no-untyped-call]
        return self.registry


class Count:
    """Middleware that counts requests by their route's template, which holds no id."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                status = str(message["status"])
                self._metrics.requests.labels(scope["method"], route, status).inc()
                self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
            await send(message)

        return await self._app(scope, receive, count)

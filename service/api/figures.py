"""What the API counts of itself."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class ApiMetrics:
    """The figures of one process."""

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
        self.jobs_waiting = Gauge(
            "fokker_jobs_waiting", "Jobs in all queues.", registry=self.registry
        )
        self.row_calls_waiting = Gauge(
            "fokker_row_calls_waiting",
            "Rows times network calls in the queues of a model.",
            ["model"],
            registry=self.registry,
        )
        self.workers = Gauge(
            "fokker_workers", "Live workers that serve a model.", ["model"], registry=self.registry
        )


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

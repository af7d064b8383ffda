"""`/metrics`: what the API has answered, and what the job store holds, in Prometheus's format."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.api.dependencies import ServicesDep
from service.jobs.beat import Beat
from service.jobs.errors import StoreError
from service.jobs.job import FINISHED
from service.jobs.overview import Overview, Waiting
from service.jobs.parameters import OPERATIONS, PRIORITIES

log = logging.getLogger(__name__)

router = APIRouter(tags=["health"])

NOTHING = Waiting(jobs=0, row_calls=0, oldest=0.0)

OUTCOMES = ("queued", "failed", "canceled")
"""What becomes of a job whose worker stopped answering, as the script `reap` counts it."""

REPLACED = "replaced"
"""Stands for the models of checkpoints that have jobs but whose model has another one by now."""


@router.get("/metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Give the figures of this server and of the job store; without Redis, those of the server."""
    store = services.store
    families = [build()]
    try:
        families += stored(await store.overview(), await store.beats(), await store.models())
    except StoreError as error:
        log.warning("metrics without the job store: %s", error)
        families.append(_redis_up(0))
    registry = CollectorRegistry()
    registry.register(services.metrics.counted())
    registry.register(_Given(families))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def build() -> Metric:
    """The family that says what runs here."""
    return InfoMetricFamily("fokker_build", "1; what runs here.", {"version": version("fokker")})


class _Given(Collector):
    """Families that were made before the registry asks for them."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def stored(
    seen: Overview, beats: Sequence[Beat], cards: Mapping[str, Mapping[str, Any]]
) -> list[Metric]:
    """The families of what the job store holds. Every API process of a store gives the same."""
    names = {card["digest"]: name for name, card in cards.items()}
    return [
        _redis_up(1),
        _value("fokker_redis_memory_used_bytes", "Memory that Redis uses.", seen.memory_used),
        _value("fokker_redis_memory_limit_bytes", "Its limit; 0: none.", seen.memory_limit),
        *_workers(beats, names),
        *_queues(seen, names),
        _value("fokker_jobs_running", "Jobs that workers have claimed.", seen.running),
        _by_model(
            "fokker_row_calls_running",
            "Rows times network calls of the jobs that run.",
            names,
            seen.row_calls_running,
        ),
        _value(
            "fokker_leases_overdue",
            "Running jobs whose lease has ended, and that no worker has taken up yet.",
            seen.overdue,
        ),
        _value("fokker_webhooks_waiting", "Webhooks to be called.", seen.webhooks),
        *_counts(seen.counts, names),
    ]


def _redis_up(value: int) -> Metric:
    return _value("fokker_redis_up", "1 if Redis answered the API, else 0.", value)


def _value(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_model(
    name: str, text: str, names: Mapping[str, str], by_digest: Mapping[str, float]
) -> Metric:
    """A gauge of every model that was ever announced, 0 where there is nothing to tell."""
    family = GaugeMetricFamily(name, text, labels=["model"])
    values: dict[str, float] = defaultdict(float, dict.fromkeys(names.values(), 0.0))
    for digest, value in by_digest.items():
        values[names.get(digest, REPLACED)] += value
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def _workers(beats: Sequence[Beat], names: Mapping[str, str]) -> list[Metric]:
    live = Counter(name for beat in beats for name in beat.models)
    serving = GaugeMetricFamily(
        "fokker_workers", "Live worker processes that serve a model.", labels=["model"]
    )
    for name in names.values():
        serving.add_metric([name], live[name])
    rates: dict[str, float] = defaultdict(float)
    for beat in beats:
        for digest, rate in beat.rates.items():
            rates[digest] += rate
    return [
        _value("fokker_live_workers", "Live worker processes.", len(beats)),
        serving,
        _by_model(
            "fokker_row_calls_per_second",
            "Row-calls a second that the live workers can make together, as they measured.",
            names,
            rates,
        ),
    ]


def _queues(seen: Overview, names: Mapping[str, str]) -> list[Metric]:
    labels = ["model", "priority"]
    jobs = GaugeMetricFamily("fokker_jobs_waiting", "Jobs in a queue.", labels=labels)
    row_calls = GaugeMetricFamily(
        "fokker_row_calls_waiting",
        "Rows times network calls of the jobs in a queue.",
        labels=labels,
    )
    oldest = GaugeMetricFamily(
        "fokker_oldest_wait_seconds",
        "Seconds since the submission of the job that is first in a queue.",
        labels=labels,
    )
    for priority in PRIORITIES:
        by_model = {name: [NOTHING] for name in names.values()}
        for (digest, of), queue in seen.waiting.items():
            if of == priority:
                by_model.setdefault(names.get(digest, REPLACED), []).append(queue)
        for model, queues in by_model.items():
            jobs.add_metric([model, priority], sum(queue.jobs for queue in queues))
            row_calls.add_metric([model, priority], sum(queue.row_calls for queue in queues))
            oldest.add_metric([model, priority], max(queue.oldest for queue in queues))
    return [jobs, row_calls, oldest]


def _counts(counts: Mapping[tuple[str, ...], int], names: Mapping[str, str]) -> list[Metric]:
    """What the scripts counted; a name and its labels are what they told `count`.

    What may still happen to a known model is 0: a rate sees the first failure only where it saw
    a 0 before.
    """
    families = {
        "submitted": CounterMetricFamily(
            "fokker_jobs_submitted", "Jobs accepted.", labels=["operation", "model"]
        ),
        "ended": CounterMetricFamily(
            "fokker_jobs_ended",
            "Jobs that ended, by whatever ended them.",
            labels=["operation", "model", "status"],
        ),
        "expired": CounterMetricFamily(
            "fokker_leases_expired",
            "Running jobs whose worker stopped answering, by what became of them.",
            labels=["outcome"],
        ),
        "released": CounterMetricFamily(
            "fokker_jobs_handed_back", "Running jobs that a worker gave back to their queue."
        ),
    }
    possible = {("released",), *(("expired", outcome) for outcome in OUTCOMES)}
    for one in product(OPERATIONS, names.values()):
        possible.add(("submitted", *one))
        possible.update(("ended", *one, status.value) for status in FINISHED)
    for what, *labels in sorted(possible | set(counts)):
        if what in families:  # another version may have counted something else
            families[what].add_metric(labels, counts.get((what, *labels), 0))
    return list(families.values())

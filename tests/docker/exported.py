"""All that API and worker export, as their registries tell it."""

from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from service.api.figures import ApiMetrics
from service.api.metrics import build, stored
from service.jobs.beat import Beat
from service.jobs.overview import Overview
from worker.metrics import Labelled, Metrics

ADDED = {"instance", "job", "le"}
"""Labels that Prometheus adds to every series, and a histogram to its buckets."""


@dataclass(frozen=True)
class Exported:
    """One metric. name: as it is documented; a histogram's without its suffixes."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def series(self) -> list[str]:
        """The names that a query may ask for."""
        parts = ("_bucket", "_sum", "_count") if self.kind == "histogram" else ("",)
        return [self.name + part for part in parts]


def of_api() -> list[Exported]:
    """What `/metrics` of an API with one model gives."""
    card = {"digits": {"name": "digits", "digest": "sha256:digits"}}
    beats = [Beat(models=["digits"], rates={"sha256:digits": 1.0})]
    given = [build(), *stored(Overview(), beats, card)]
    return [*_attributes(ApiMetrics()), *(_exported(family, family.name) for family in given)]


def of_worker() -> list[Exported]:
    """What a worker's exporter gives, but for the figures of its process."""
    return _attributes(Metrics())


def _attributes(metrics: ApiMetrics | Metrics) -> list[Exported]:
    values = vars(metrics).values()
    wrapped = [value._metric if isinstance(value, Labelled) else value for value in values]
    return [
        _exported(metric, metric._name)
        for metric in wrapped
        if isinstance(metric, MetricWrapperBase)
    ]


def _exported(metric: Any, name: str) -> Exported:
    kind = str(metric._type if isinstance(metric, MetricWrapperBase) else metric.type)
    suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
    labels = tuple(metric.samples[0].labels) if kind == "info" else tuple(metric._labelnames)
    text = metric._documentation if isinstance(metric, MetricWrapperBase) else metric.documentation
    return Exported(name + suffix, kind, labels, text)

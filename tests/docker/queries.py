"""Which series and labels a PromQL query names."""

import re
from dataclasses import dataclass

import promql_parser as promql

from tests.docker.exported import ADDED, Exported


@dataclass(frozen=True)
class Selector:
    """A series that a query asks for, and the labels that it filters by."""

    series: str
    labels: frozenset[str]


def selectors(query: str) -> list[Selector]:
    """The selectors of a query; raises `ValueError` for what is no PromQL."""
    found: list[Selector] = []

    def visit(expression: promql.Expr) -> bool:
        if isinstance(expression, promql.VectorSelector):
            # Grafana's intervals and Prometheus's names are all that stands here.
            assert expression.name, "a selector needs a name"
            labels = frozenset(matcher.name for matcher in expression.matchers.matchers)
            found.append(Selector(expression.name, labels))
        return True

    # Grafana writes the interval in; the parser knows durations only.
    promql.walk(promql.parse(re.sub(r"\$__\w+", "5m", query)), visit)
    return found


def unknown(query: str, exported: list[Exported]) -> list[str]:
    """What a query names that nobody exports: series, and labels that a series does not have."""
    known = {series: set(metric.labels) for metric in exported for series in metric.series}
    wrong = []
    for selector in selectors(query):
        name = selector.series
        if name == "up" or name.startswith("process_"):  # Prometheus's and its client's own
            continue
        if name not in known:
            wrong.append(name)
        else:
            wrong += [f"{name}{{{label}}}" for label in selector.labels - known[name] - ADDED]
    return wrong

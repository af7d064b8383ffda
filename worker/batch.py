"""Queries of several jobs as one, and its answer as several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.query import Answer, Condition, Query


def merge(queries: Sequence[Query]) -> Query:
    """One query with the rows of all, in order; all ask for the same kind of divergence."""
    if len(queries) == 1:
        return queries[0]
    first = queries[0]
    probes = [query.probes for query in queries if query.probes is not None]
    return Query(
        u=torch.cat([query.u for query in queries]),
        log_snr=torch.cat([query.log_snr for query in queries]),
        condition=Condition(
            label=torch.cat([query.condition.label for query in queries]),
            guidance=torch.cat([query.condition.guidance for query in queries]),
        ),
        image=torch.cat([query.image for query in queries]),
        probes=torch.cat(probes) if probes else None,
        exact_trace=first.exact_trace,
        reproducible=first.reproducible,
    )


def split(answer: Answer, queries: Sequence[Query]) -> list[Answer]:
    """The part of a merged query's answer that belongs to each of the queries."""
    parts, first = [], 0
    for query in queries:
        rows = slice(first, first + len(query.u))
        products = None if answer.products is None else answer.products[rows]
        trace = None if answer.trace is None else answer.trace[rows]
        parts.append(Answer(eps=answer.eps[rows], products=products, trace=trace))
        first = rows.stop
    return parts

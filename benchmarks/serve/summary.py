"""From what the clients saw to figures: rates, percentiles, spreads over rounds, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serve.errors import BenchError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request as its client saw it; times are seconds since the load began.

    index: which of the load's requests. error: why it failed, None if it did not.
    """

    index: int
    started: float
    ended: float
    images: int
    error: str | None = None

    @property
    def latency(self) -> float:
        """Seconds from the first byte sent to the last one received."""
        return self.ended - self.started


@dataclass(frozen=True, kw_only=True)
class Window:
    """The seconds of a load that are measured: those before `start` warm it up."""

    start: float
    end: float


def rate(records: Sequence[Record], window: Window) -> float:
    """Images/s: the least-squares slope of images finished over time, within the window.

    A server that answers in bursts finishes 0 or 64 images more by where the window happens to
    end; the slope hardly moves. With C(t) the images finished by t and L = end − start it is
    12/L³ ∫ (t − middle) C(t) dt, to which an image finished at s adds 6 (s − start)(end − s)/L³.
    Raises BenchError if there is none.
    """
    a, b = window.start, window.end
    inside = [r for r in records if a < r.ended < b]
    if not inside:
        raise BenchError("no request was answered in the window; measure for longer (--seconds)")
    return sum(r.images * 6 * (r.ended - a) * (b - r.ended) for r in inside) / (b - a) ** 3


def latencies(records: Sequence[Record], window: Window) -> list[float]:
    """Seconds of the requests that were sent within the window, whenever they were answered."""
    return [r.latency for r in records if window.start <= r.started < window.end]


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile, linear between neighbours. Raises BenchError if there is no value."""
    if not values:
        raise BenchError("no request was sent in the window; measure for longer (--seconds)")
    return float(np.percentile(values, q))


def knee(curve: Mapping[int, float]) -> int:
    """The smallest batch that gives within 5 % of the most rows/s; `curve` is rows → rows/s."""
    most = max(curve.values())
    return min(rows for rows, rows_a_second in curve.items() if rows_a_second >= 0.95 * most)


@dataclass(frozen=True)
class Spread:
    """A figure over several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and range. Raises BenchError if there is no value."""
        if not values:
            raise BenchError("no round was measured; ask for at least one (--rounds)")
        return cls(float(np.median(values)), min(values), max(values))


def number(value: float) -> str:
    """Three significant digits, never an exponent: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if not np.isfinite(value):
        return f"{value}"
    decimals = 2 - int(np.floor(np.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats in three digits. Raises ValueError if a row has another length."""
    lines = [list(header), ["---"] * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells under {len(header)} headings: {row}")
        lines.append([number(cell) if isinstance(cell, float) else str(cell) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


Measured = tuple[str, Sequence[float], str]
"""A figure's name, its value in each round, and what is asked of it ("" for nothing)."""


def figures(measured: Sequence[Measured]) -> str:
    """A table of figures with the median and the range over the rounds."""
    rows = []
    for name, values, asked in measured:
        found = Spread.of(values)
        rows.append((name, found.median, f"{number(found.low)} … {number(found.high)}", asked))
    return table(("", "median", "range", "asked"), rows)

"""Lines and histograms as SVG, for a page that has to stand alone.

Colours are the page's: lines take its variables ``--line-1``, ``--line-2``, …, everything else
`currentColor`, so that charts follow a reader's light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44

Scale = Literal["linear", "log"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line through (x, y) with its name; errors: half the height of a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] | None = None
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A histogram: edges, one more than counts."""

    edges: Sequence[float]
    counts: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """Maps low … high to pixels from start to end."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale = "linear"

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = (self._of(value) - self._of(self.low)) / (self._of(self.high) - self._of(self.low))
        return self.start + share * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.scale == "log" else value

    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        if self.scale == "linear":
            return _round_values(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        digits = (1, 2, 5) if len(powers) <= 3 else (1,)
        values = [digit * 10.0**power for power in powers for digit in digits]
        inside = [value for value in values if self.low <= value <= self.high]
        return inside if len(inside) > 1 else _round_values(self.low, self.high)


def lines(series: Sequence[Series], *, x: str, y: str, y_scale: Scale = "linear") -> str:
    """A chart of lines with named axes; values that are no numbers, or not above 0 on a logarithmic
    axis, are left out. An empty string where nothing is left to draw.
    """
    kept = [_drawable(one, y_scale) for one in series]
    kept = [one for one in kept if one.x]
    if not kept:
        return ""
    heights = [value for one in kept for value in one.y]
    for one in kept:
        if one.errors is not None and y_scale == "linear":
            heights += [v + e for v, e in zip(one.y, one.errors, strict=True)]
            heights += [v - e for v, e in zip(one.y, one.errors, strict=True)]
    across = _axis([v for one in kept for v in one.x], LEFT, WIDTH - RIGHT, pad=0.0)
    up = _axis(heights, HEIGHT - BOTTOM, TOP, pad=0.05, scale=y_scale)
    body = [part for i, one in enumerate(kept) for part in _line(one, i, across, up)]
    return _svg([*_frame(across, up, x, y), *body, *_legend(kept)])


def histogram(bars: Bars, *, x: str, y: str) -> str:
    """A chart of bars with named axes."""
    across = Axis(bars.edges[0], bars.edges[-1], LEFT, WIDTH - RIGHT)
    up = Axis(0.0, max(*bars.counts, 1.0) * 1.05, HEIGHT - BOTTOM, TOP)
    floor = up(0.0)
    body = [
        f'<rect x="{across(left):.1f}" y="{up(count):.1f}" '
        f'width="{max(across(right) - across(left) - 1, 0.5):.1f}" '
        f'height="{floor - up(count):.1f}" fill="var(--line-1)"/>'
        for left, right, count in zip(bars.edges, bars.edges[1:], bars.counts, strict=False)
    ]
    return _svg([*_frame(across, up, x, y), *body])


def _drawable(series: Series, scale: Scale) -> Series:
    errors = series.errors or [0.0] * len(series.x)
    points = [
        (a, b, e)
        for a, b, e in zip(series.x, series.y, errors, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (scale == "linear" or b > 0)
    ]
    x, y, kept = (list(values) for values in zip(*points, strict=True)) if points else ([], [], [])
    return Series(
        name=series.name,
        x=x,
        y=y,
        errors=None if series.errors is None else [e if math.isfinite(e) else 0.0 for e in kept],
        faint=series.faint,
    )


def _axis(
    values: Sequence[float], start: float, end: float, *, pad: float, scale: Scale = "linear"
) -> Axis:
    low, high = min(values), max(values)
    if scale == "log":
        factor = max(high / low, 1.1) ** pad
        return Axis(low / factor, high * factor, start, end, scale)
    span = (high - low) or abs(high) or 1.0
    return Axis(low - pad * span, high + (pad if high > low else 1.0) * span, start, end)


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _line(series: Series, index: int, across: Axis, up: Axis) -> Iterator[str]:
    colour = f"var(--line-{index % 4 + 1})"
    if series.errors is not None:
        clipped = up.low if up.scale == "log" else -math.inf
        upper = zip(series.x, series.y, series.errors, strict=True)
        lower = reversed(list(zip(series.x, series.y, series.errors, strict=True)))
        edge = [(a, b + e) for a, b, e in upper] + [(a, max(b - e, clipped)) for a, b, e in lower]
        yield f'<polygon points="{_points(edge, across, up)}" fill="{colour}" opacity="0.2"/>'
    drawn = list(zip(series.x, series.y, strict=True))
    opacity = ' opacity="0.35"' if series.faint else ""
    yield (
        f'<polyline points="{_points(drawn, across, up)}" fill="none" stroke="{colour}" '
        f'stroke-width="1.6" stroke-linejoin="round"{opacity}/>'
    )


def _points(points: Sequence[tuple[float, float]], across: Axis, up: Axis) -> str:
    return " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)


def _frame(across: Axis, up: Axis, x: str, y: str) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    for tick in up.ticks():
        at = up(tick)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
        yield _text(LEFT - 7, at + 4, f"{tick:g}", "end")
    for tick in across.ticks():
        at = across(tick)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}" class="axis"/>'
        yield _text(at, floor + 17, f"{tick:g}", "middle")
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}" class="axis"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x, "middle")
    middle = (TOP + floor) / 2
    yield f'<g transform="translate(13,{middle:.0f}) rotate(-90)">{_text(0, 0, y, "middle")}</g>'


def _legend(series: Sequence[Series]) -> Iterator[str]:
    if len(series) < 2:
        return
    for i, one in enumerate(series):
        at = TOP + 8 + 16 * i
        yield (
            f'<line x1="{WIDTH - RIGHT - 22}" x2="{WIDTH - RIGHT - 4}" y1="{at}" y2="{at}" '
            f'stroke="var(--line-{i % 4 + 1})" stroke-width="2.5"/>'
        )
        yield _text(WIDTH - RIGHT - 28, at + 4, one.name, "end")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart">' + "".join(parts) + "</svg>"
    )

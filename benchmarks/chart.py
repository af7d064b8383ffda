"""Lines on two logarithmic axes, as a page of SVG.

Written by hand since nothing else here draws: panels side by side share their axes, every line
carries its name at its end.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, NAMES = 330, 300, 56, 34, 46, 140
"""Pixels of a panel, and of the margins around it; NAMES is right of it."""
SPACING = 14
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#4a4a4a")
"""Okabe and Ito's, which colour-blind readers can tell apart, and grey."""
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line through (x, y), all positive, with its name."""

    name: str
    points: Points


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines under one title; at most as many as there are colours."""

    title: str
    series: list[Series]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps [low, high] to pixels from ``start`` to ``end``, logarithmically."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """1, 2 and 5 times the powers of ten."""
        for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**power
                if self.low <= value <= self.high:
                    yield value


def chart(panels: list[Panel], *, x: str, y: str, marks: dict[str, float]) -> str:
    """The SVG; marks are named heights, drawn as dashed lines."""
    points = [point for panel in panels for series in panel.series for point in series.points]
    xs, ys = [p[0] for p in points], [*marks.values(), *(p[1] for p in points)]
    across = Axis(low=min(xs) / 1.1, high=max(xs) * 1.1, start=0.0, end=WIDTH)
    up = Axis(low=min(ys) / 1.2, high=max(ys) * 1.2, start=HEIGHT, end=0.0)
    pitch = LEFT + WIDTH + NAMES
    parts = [
        f'<g transform="translate({i * pitch + LEFT},{TOP})">'
        + "".join(_panel(panel, across, up, x, y, marks))
        + "</g>"
        for i, panel in enumerate(panels)
    ]
    size = (pitch * len(panels), TOP + HEIGHT + BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    panel: Panel, across: Axis, up: Axis, x: str, y: str, marks: dict[str, float]
) -> Iterator[str]:
    yield _text(0, -14, panel.title, weight="bold")
    for tick in across.ticks():
        at = across(tick)
        yield _line(at, 0, at, HEIGHT, "#eeeeee")
        yield _text(at, HEIGHT + 17, f"{tick:g}", anchor="middle")
    for tick in up.ticks():
        at = up(tick)
        yield _line(0, at, WIDTH, at, "#eeeeee")
        yield _text(-7, at + 4, f"{tick:g}", anchor="end")
    yield _text(WIDTH / 2, HEIGHT + 37, x, anchor="middle")
    yield (
        f'<g transform="translate(-42,{HEIGHT / 2}) rotate(-90)">{_text(0, 0, y, anchor="middle")}'
        "</g>"
    )
    for mark in marks.values():
        yield _line(0, up(mark), WIDTH, up(mark), "#000000", dash="5 4")
    coloured = list(zip(panel.series, COLOURS, strict=False))
    for series, colour in coloured:
        places = [(across(a), up(b)) for a, b in series.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        yield from (
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>' for a, b in places
        )
    ends = [(up(s.points[-1][1]), across(s.points[-1][0]), s.name, c) for s, c in coloured]
    ends += [(up(mark), WIDTH, name, "#000000") for name, mark in marks.items()]
    heights = _apart([end[0] for end in ends])
    for (height, start, name, colour), beside in zip(ends, heights, strict=True):
        if start < WIDTH:
            yield _line(start, height, WIDTH + 6, beside, colour, width=0.6)
        yield _text(WIDTH + 9, beside + 4, name, fill=colour)


def _apart(heights: list[float]) -> list[float]:
    """The heights moved so that none is closer to another than a line of text."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + SPACING)
    lowest = float(HEIGHT + SPACING)
    for i in reversed(order):
        moved[i] = min(moved[i], lowest)
        lowest = moved[i] - SPACING
    return moved


def _line(
    x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1.0, dash: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
        f'stroke-width="{width}"{dashed}/>'
    )


def _text(
    x: float, y: float, words: str, anchor: str = "start", fill: str = "#333333", weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{bold}>'
        f"{escape(words)}</text>"
    )

import math
import re
from xml.etree import ElementTree

import pytest

from training.report_charts import Axis, Bars, Series, histogram, lines


def points(svg: str, tag: str) -> list[list[tuple[float, float]]]:
    """The corners of every element of a kind."""
    root = ElementTree.fromstring(svg)
    return [
        [tuple(map(float, pair.split(","))) for pair in element.attrib["points"].split()]  # type: ignore[misc]
        for element in root.iter(tag)
    ]


def test_a_line_goes_through_its_points_with_the_smallest_at_the_bottom() -> None:
    svg = lines([Series(name="a", x=[0, 1, 2], y=[5, 7, 6])], x="x", y="y")
    (line,) = points(svg, "polyline")
    assert [a for a, _ in line] == pytest.approx([62, 344, 626])
    heights = [b for _, b in line]
    assert heights[1] < heights[2] < heights[0]
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2)


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances() -> None:
    svg = lines([Series(name="a", x=[0, 1, 2], y=[1, 10, 100])], x="x", y="y", y_scale="log")
    heights = [b for _, b in points(svg, "polyline")[0]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_errors_are_a_band_around_the_line() -> None:
    svg = lines([Series(name="a", x=[0, 1], y=[1, 2], errors=[0.5, 0.25])], x="x", y="y")
    (line,), (band,) = points(svg, "polyline"), points(svg, "polygon")
    assert len(band) == 4
    assert band[0][1] < line[0][1] < band[-1][1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_left_out(bad: float) -> None:
    svg = lines([Series(name="a", x=[0, 1, 2], y=[5, bad, 6])], x="x", y="y")
    assert len(points(svg, "polyline")[0]) == 2
    assert lines([Series(name="a", x=[0], y=[bad])], x="x", y="y") == ""
    assert lines([Series(name="a", x=[0], y=[-1])], x="x", y="y", y_scale="log") == ""


def test_several_lines_have_a_legend_and_words_are_escaped() -> None:
    series = [Series(name=name, x=[0, 1], y=[1, 2]) for name in ("a<b", "c")]
    svg = lines(series, x="x & y", y="y")
    assert "a&lt;b" in svg
    assert "x &amp; y" in svg
    assert ">c<" in svg


@pytest.mark.parametrize("y", [[3.0, 3.0], [0.0, 0.0]])
def test_a_constant_is_drawn(y: list[float]) -> None:
    assert points(lines([Series(name="a", x=[0, 1], y=y)], x="x", y="y"), "polyline")


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 10, 0, 1), [0, 2, 4, 6, 8, 10]),
        (Axis(-0.3, 0.31, 0, 1), [-0.2, 0, 0.2]),
        (Axis(1, 1000, 0, 1, "log"), [1, 10, 100, 1000]),
        (Axis(1, 10, 0, 1, "log"), [1, 2, 5, 10]),
        (Axis(1.1, 1.9, 0, 1, "log"), [1.2, 1.4, 1.6, 1.8]),
    ],
)
def test_ticks_are_round_and_within(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_bars_are_as_high_as_their_counts() -> None:
    svg = histogram(Bars(edges=[0, 1, 2, 3], counts=[1, 4, 2]), x="x", y="y")
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', svg)]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    assert heights[2] == pytest.approx(2 * heights[0], rel=0.01)

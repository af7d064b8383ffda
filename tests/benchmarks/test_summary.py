import numpy as np
import pytest

from benchmarks.serve.errors import BenchError
from benchmarks.serve.summary import (
    Record,
    Spread,
    Window,
    figures,
    knee,
    latencies,
    number,
    percentile,
    rate,
    table,
)

WINDOW = Window(start=10.0, end=70.0)


def records(ends: np.ndarray, images: int = 1) -> list[Record]:
    return [Record(index=0, started=end - 5.0, ended=end, images=images) for end in ends.tolist()]


def test_rate_of_an_even_stream_is_its_rate() -> None:
    stream = records(np.arange(0.0, 90.0, 0.1), images=2)
    assert rate(stream, WINDOW) == pytest.approx(20.0, rel=1e-4)


@pytest.mark.parametrize("phase", [0.0, 2.0, 4.0, 6.0])
def test_rate_of_bursts_does_not_depend_on_where_the_window_ends(phase: float) -> None:
    period, size = 7.5, 64
    bursts = records(np.repeat(np.arange(phase, 90.0, period), size))
    assert rate(bursts, WINDOW) == pytest.approx(size / period, rel=0.02)


def test_rate_of_a_growing_stream_is_that_of_the_middle() -> None:
    ends = np.sqrt(np.arange(0.0, 90.0**2))  # n ends at √n: 2 t images a second at time t
    assert rate(records(ends), WINDOW) == pytest.approx(2 * 40.0, rel=1e-3)


def test_a_window_without_an_answer_is_no_rate_of_zero() -> None:
    with pytest.raises(BenchError, match="--seconds"):
        rate(records(np.array([5.0, 75.0])), WINDOW)


def test_latencies_are_of_requests_sent_in_the_window_even_if_answered_later() -> None:
    sent = [
        Record(index=0, started=9.9, ended=20.0, images=1),
        Record(index=0, started=10.0, ended=11.0, images=1),
        Record(index=0, started=69.9, ended=99.9, images=1),
        Record(index=0, started=70.0, ended=71.0, images=1),
    ]
    assert latencies(sent, WINDOW) == [1.0, pytest.approx(30.0)]


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0], 100) == 2.0
    with pytest.raises(BenchError, match="no request"):
        percentile([], 95)


def test_knee_is_the_smallest_batch_within_five_per_cent_of_the_best() -> None:
    assert knee({1: 400.0, 16: 2000.0, 64: 3850.0, 128: 4000.0, 256: 3900.0}) == 64
    assert knee({1: 400.0, 16: 2000.0, 64: 3790.0, 128: 4000.0}) == 128


def test_spread_is_median_and_range() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(median=3.0, low=1.0, high=10.0)
    with pytest.raises(BenchError, match="--rounds"):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (-1.234, "-1.23"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert number(value) == shown


def test_table_is_markdown_and_refuses_a_row_of_another_length() -> None:
    assert table(("a", "b"), [("x", 1.5)]) == "| a | b |\n| --- | --- |\n| x | 1.50 |"
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        table(("a", "b"), [("x",)])


def test_figures_show_median_range_and_what_is_asked() -> None:
    shown = figures([("ratio", [0.9, 0.95, 0.8], "≥ 0.90")])
    assert shown.splitlines()[2] == "| ratio | 0.900 | 0.800 … 0.950 | ≥ 0.90 |"

"""One module a figure; each has `measure(options)`, which gives the figure's Markdown."""

from collections.abc import Callable

from benchmarks.serve.figures import (
    growth,
    latency,
    likelihood,
    limit,
    one_job,
    overhead,
    peer,
)
from benchmarks.serve.options import Options

FIGURES: dict[int, tuple[str, Callable[[Options], str]]] = {
    1: ("Against the limit", limit.measure),
    2: ("Against one job at a time", one_job.measure),
    3: ("Against diffusers behind LitServe", peer.measure),
    4: ("Latency under load", latency.measure),
    5: ("Cost of growth", growth.measure),
    6: ("Overhead of a tick", overhead.measure),
    7: ("Likelihood", likelihood.measure),
}

"""What is measured for how long, and the loads that several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serve.load import WAIT, Load, Request
from benchmarks.serve.summary import Window
from benchmarks.serve.system import generate


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much of everything.

    rounds: how often all is measured. seconds: of one load. clients, steps: of the load of single
    digits. rows: the batch at the knee. jobs: how many short ones memory is watched over.
    """

    rounds: int
    seconds: float
    clients: int
    steps: int
    rows: int
    jobs: int


def digits(options: Options, models: Sequence[str] = ("digits",)) -> list[Request]:
    """Requests for one digit each, with seeds of their own, of the models in turn."""
    count = options.clients * len(models)
    return [generate(n, options.steps, model=models[n % len(models)]) for n in range(count)]


def window_of(seconds: float) -> Window:
    """What is measured of a load: all but its first fifth, in which the clients start."""
    return Window(start=seconds / 4, end=seconds * 5 / 4)


def closed_loop(
    url: str, requests: Sequence[Request], clients: int, seconds: float, drain: float = WAIT
) -> Load:
    """`clients` that start one after another, and then ask for `seconds` that are measured."""
    window = window_of(seconds)
    return Load(
        base_url=url,
        requests=requests,
        clients=clients,
        ramp=window.start / 2 if clients > 1 else 0.0,
        seconds=window.end,
        drain=drain,
    )

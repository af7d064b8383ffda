"""5. Images/s over clients and models, and the worker's memory over many jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import model
from benchmarks.chart import Panel, Series, chart
from benchmarks.serve.errors import BenchError
from benchmarks.serve.load import WAIT, Load, Request, drive
from benchmarks.serve.network import images_a_second
from benchmarks.serve.options import Options, closed_loop, digits, window_of
from benchmarks.serve.processes import ROOT, say
from benchmarks.serve.summary import Spread, number, rate, table
from benchmarks.serve.system import fokker, generate
from model import checkpoint

CLIENT_COUNTS, MODEL_COUNTS = (1, 4, 16, 64, 256), (1, 2, 3, 4)
PLOT = ROOT / "docs" / "images" / "growth.svg"
WARM_UP = 64
WARM_JOBS = 1000
JOB_LIMIT = 1.0  # seconds that a short job may take on average


def measure(options: Options) -> str:
    """A table of images/s, the same as a plot in docs/images, and the memory's growth."""
    found = rates(options)
    say(found)  # also where what follows fails
    return f"{found}\n\n{memory(options)}"


def rates(options: Options) -> str:
    """Images/s for every number of clients and models, a third of `seconds` each.

    Longer where so many clients need it to have two images each: those of a full house come late.
    """
    found: dict[tuple[int, int], list[float]] = {}
    limits = []
    with copies(max(MODEL_COUNTS)) as folder:
        for _ in range(options.rounds):
            limits.append(images_a_second(options.rows, options.steps))
            for models in MODEL_COUNTS:
                requests = digits(options, [name_of(copy) for copy in range(models)])
                with fokker(models=folder) as system:
                    warm_up(system.url, requests)
                    for clients in CLIENT_COUNTS:
                        seconds = max(options.seconds / 3, 2 * clients / limits[-1])
                        load = closed_loop(system.url, requests, clients, seconds)
                        images = rate(drive(load), window_of(seconds))
                        found.setdefault((clients, models), []).append(images)
    spreads = {cell: Spread.of(values) for cell, values in found.items()}
    limit = Spread.of(limits)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    PLOT.write_text(plot(spreads, limit.median))
    say(f"  wrote {PLOT}")
    found_table = table(
        ("clients", *(f"{models} model{'s' * (models > 1)}" for models in MODEL_COUNTS)),
        [
            (clients, *(cell_text(spreads[clients, models]) for models in MODEL_COUNTS))
            for clients in CLIENT_COUNTS
        ],
    )
    what = f"Images/s, median and range; the network alone allows {cell_text(limit)}."
    return f"{what}\n\n{found_table}"


def warm_up(url: str, requests: Sequence[Request]) -> None:
    """Some requests of every model, so that it is loaded, and its curve measured, before."""
    drive(Load(base_url=url, requests=requests, clients=WARM_UP, seconds=WAIT, total=WARM_UP))


def cell_text(spread: Spread) -> str:
    """Median and range in one cell."""
    return f"{number(spread.median)} ({number(spread.low)} … {number(spread.high)})"


def plot(spreads: Mapping[tuple[int, int], Spread], limit: float) -> str:
    """The medians by (clients, models), and the network's own limit, as SVG."""
    series = [
        Series(
            name=f"{models} model{'s' * (models > 1)}",
            points=[(clients, spreads[clients, models].median) for clients in CLIENT_COUNTS],
        )
        for models in MODEL_COUNTS
    ]
    panel = Panel(title="One digit a request, closed loop", series=series)
    return chart([panel], x="clients", y="images/s", marks={"network's limit": limit})


@contextmanager
def copies(count: int) -> Iterator[Path]:
    """A folder with copies of the digits model that differ in the last digits of their weights."""
    shipped = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
    weights = shipped.network.state_dict()
    with tempfile.TemporaryDirectory(prefix="fokker-bench-") as folder:
        for copy in range(count):
            scaled = {name: tensor * (1 + copy * 1e-6) for name, tensor in weights.items()}
            path = Path(folder) / f"{name_of(copy)}.safetensors"
            checkpoint.save(path, shipped.description, scaled)
        yield Path(folder)


def name_of(copy: int) -> str:
    """A copy's name."""
    return f"digits-{copy + 1}"


def memory(options: Options) -> str:
    """What the worker's process occupies after every tenth of the short jobs."""
    lot = min(WARM_JOBS, max(options.jobs // 10, 1))
    requests = [generate(n, 2, sampler="ddim", format="npy") for n in range(lot)]
    occupied: list[float] = []
    with fokker() as system:
        load = Load(
            base_url=system.url,
            requests=requests,
            clients=options.clients,
            seconds=JOB_LIMIT * lot,
            total=lot,
        )
        for _ in range(max(options.jobs // lot, 2)):
            if len(drive(load)) < lot:
                raise BenchError(f"{lot} short jobs took longer than {load.seconds:.0f} s")
            occupied.append(system.resident_megabytes())
            say(f"  worker: {occupied[-1]:.1f} MB")
    grown = f"{occupied[-1] - occupied[0]:+.1f} MB"
    asked = "< 20 MB after the first 1,000 of 10,000"
    rows = [(f"{(n + 1) * lot:,}", f"{size:.1f}") for n, size in enumerate(occupied)]
    growth = table(("worker's memory", "", "asked"), [("growth after the first lot", grown, asked)])
    return f"{table(('jobs so far', 'resident, MB'), rows)}\n\n{growth}"

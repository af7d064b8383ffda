"""2. The engine against itself limited to one job at a time, and against the network's own gain."""

from __future__ import annotations

from benchmarks.serve.load import drive
from benchmarks.serve.network import rows_a_second
from benchmarks.serve.options import Options, closed_loop, digits, window_of
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures, knee, rate, table
from benchmarks.serve.system import fokker

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CURVE_SECONDS = 2.0


def measure(options: Options) -> str:
    """Images/s with 64 clients and with one, of both; the network's curve before each round."""
    rates: dict[tuple[str, int], list[float]] = {}
    curves, network_gain, gain, share, single = [], [], [], [], []
    for number in range(options.rounds):
        curves.append(rows_a_second(*SIZES, seconds=CURVE_SECONDS))
        network_gain.append(curves[-1][knee(curves[-1])] / curves[-1][1])
        for name, jobs in (("one job", "1"), ("engine", None)):
            for clients in (1, options.clients):
                found = images_a_second(jobs, clients, options)
                rates.setdefault((name, clients), []).append(found)
        gain.append(rates["engine", options.clients][-1] / rates["one job", options.clients][-1])
        share.append(gain[-1] / network_gain[-1])
        single.append(rates["engine", 1][-1] / rates["one job", 1][-1])
        say(f"  round {number + 1}: gain {gain[-1]:.2f} of {network_gain[-1]:.2f}")
    knees = [float(knee(curve)) for curve in curves]
    measured = [
        (f"{name}, {clients} client{'s' * (clients > 1)}, images/s", values, "")
        for (name, clients), values in rates.items()
    ]
    curve = [(rows, *(found[rows] for found in curves)) for rows in SIZES]
    header = ("rows a call", *(f"rows/s, round {n + 1}" for n in range(options.rounds)))
    return "\n\n".join(
        (
            figures(
                (
                    *measured,
                    ("knee, rows", knees, ""),
                    ("network's own gain, knee over one row", network_gain, ""),
                    (f"gain with {options.clients} clients", gain, ""),
                    ("gain over the network's own", share, "≥ 0.8"),
                    ("with one client, over one job at a time", single, "≥ 0.97"),
                )
            ),
            table(header, curve),
        )
    )


def images_a_second(jobs: str | None, clients: int, options: Options) -> float:
    """Images/s of a service started for this, its engine limited to `jobs` at a time."""
    one = {"FOKKER_WORKER_PROCESSES": "1"}
    variables = {} if jobs is None else one | {"FOKKER_ENGINE_JOBS": jobs}
    with fokker(variables) as system:
        load = closed_loop(system.url, digits(options), clients, options.seconds, drain=0)
        return rate(drive(load), window_of(options.seconds))

"""What the bare network allows: rows/s of its forward, in a process where nothing else runs.

    python -m benchmarks.serve.network --rows 1 64 --seconds 3

prints rows → rows/s as JSON. The sizes take turns in short slices, so that all of them see the
same machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.serve.processes import outputs, python, say

SLICE = 0.5  # seconds
TRIALS = 3  # calls before a size is timed
PROCESS_LIMIT = 300.0
TIMED = 5.0  # seconds of calls that say what the network allows


def rows_a_second(*rows: int, seconds: float, processes: int = 1) -> dict[int, float]:
    """Rows/s of the shipped network by batch size, `seconds` each, where nothing else runs.

    Of several processes at once, which share the cores, it is the sum. Raises BenchError.
    """
    arguments = ["--rows", *map(str, rows), "--seconds", str(seconds)]
    command = python("benchmarks.serve.network", *arguments)
    found = outputs(command, PROCESS_LIMIT + seconds * len(rows), processes)
    curves = [json.loads(out) for out in found]
    curve = {size: float(sum(curve[str(size)] for curve in curves)) for size in rows}
    say("    forward alone: " + ", ".join(f"{n} rows {v:.0f}/s" for n, v in curve.items()))
    return curve


def images_a_second(rows: int, steps: int, processes: int = 1) -> float:
    """Images/s of `steps` calls each that the network allows in batches of `rows`.

    Of several processes each has its part of the rows.
    """
    own = rows // processes
    return rows_a_second(own, seconds=TIMED, processes=processes)[own] / steps


def forward(rows: int) -> Callable[[], object]:
    """A call of the shipped network on `rows` rows."""
    import torch

    import model
    from model.checkpoint import load

    checkpoint = load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
    denoiser = checkpoint.denoiser()
    network = denoiser.fast or denoiser.network
    shape = checkpoint.description.data.shape
    u = torch.randn(rows, *shape, dtype=denoiser.dtype)
    log_snr = torch.linspace(-9, 9, rows, dtype=denoiser.dtype)
    label = torch.full((rows,), -1)

    def call() -> object:
        with torch.no_grad():
            return network(u, log_snr, label)

    return call


def measure(sizes: Sequence[int], seconds: float) -> dict[int, float]:
    """Rows/s of each batch size, over `seconds` of each, in a process set up as a worker's."""
    from model.cores import start_threads
    from worker.threads import CORES, share_interpreter

    share_interpreter()
    start_threads(CORES)
    calls = {rows: forward(rows) for rows in sizes}
    for call in calls.values():
        for _ in range(TRIALS):
            call()
    spent = dict.fromkeys(sizes, 0.0)
    done = dict.fromkeys(sizes, 0)
    while min(spent.values()) < seconds:
        for rows, call in calls.items():
            began = time.perf_counter()
            while (passed := time.perf_counter() - began) < min(SLICE, seconds):
                call()
                done[rows] += rows
            spent[rows] += passed
    return {rows: done[rows] / spent[rows] for rows in sizes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    print(json.dumps(measure(given.rows, given.seconds)))


if __name__ == "__main__":
    main()

"""Measure one API process under load and print Markdown.

    scripts/bench api                       both figures, some minutes
    scripts/bench api --figure streams --rates 1 4
    scripts/bench api --figure submit --rate 300

API, Redis, clients and what stands for workers are processes of their own, started here on
loopback, and share this machine: run it on one that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from importlib.metadata import version

import psutil  # type: ignore[import-untyped]

from benchmarks.api import streams, submissions
from benchmarks.serve.machine import processor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figure", choices=("streams", "submit"), action="append")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1, 4, 8, 16, 32], help="events/s of one job"
    )
    parser.add_argument("--rate", type=float, default=300, help="submissions/s")
    parser.add_argument("--seconds", type=float, default=None, help="15 a rate, 30 of submissions")
    return parser.parse_args()


def named(package: str) -> str:
    """A package with its version."""
    return f"{package} {version(package)}"


def describe() -> str:
    """The machine and the versions that matter, as a Markdown line."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    chosen = ("uvicorn", "fastapi", "redis")
    versions = ", ".join((f"Python {platform.python_version()}", *map(named, chosen)))
    return (
        f"- {processor()}, {os.cpu_count()} logical cores, {memory:.0f} GiB; load before: {load}\n"
        f"- {platform.system()} {platform.release()}, {versions}"
    )


def main() -> int:
    given = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, too
    print(describe(), flush=True)
    chosen = given.figure or ["streams", "submit"]
    try:
        if "streams" in chosen:
            report = streams.measure(
                given.rates,
                jobs=given.jobs,
                streams=given.streams,
                seconds=given.seconds or 15.0,
            )
            title = f"{given.streams:,} open streams on the events of {given.jobs} running jobs"
            print(f"\n### {title}\n\n{report}", flush=True)
        if "submit" in chosen:
            report = submissions.measure(given.rate, given.seconds or 30.0)
            print(f"\n### Submissions\n\n{report}", flush=True)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure the running service and print Markdown.

    scripts/bench serve                          all figures: hours
    scripts/bench serve --figure 1 --figure 6    some of them
    scripts/bench serve --rounds 1 --seconds 10 --clients 8 --steps 10    a look, no measurement

Everything is started here, on loopback, and stopped at the end. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback

from benchmarks.serve.errors import SkippedError
from benchmarks.serve.figures import FIGURES
from benchmarks.serve.machine import describe
from benchmarks.serve.options import Options
from benchmarks.serve.processes import say, time_limit


def parse() -> argparse.Namespace:
    about = "\n".join(f"  {number}. {title}" for number, (title, _) in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench serve",
        description=f"{__doc__}\nFigures:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figure", type=int, choices=FIGURES, action="append", metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured of each load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--steps", type=int, default=250, help="of one digit")
    parser.add_argument("--rows", type=int, default=64, help="the batch at the knee (figure 1)")
    parser.add_argument("--jobs", type=int, default=10_000, help="short jobs of figure 5")
    parser.add_argument("--limit", type=float, default=180, help="minutes a figure may take")
    given = parser.parse_args()
    wrong = [name for name, value in vars(given).items() if name != "figure" and value <= 0]
    if wrong:
        parser.error(f"must be above 0: {', '.join(wrong)}")
    return given


def main() -> int:
    given = parse()
    options = Options(
        rounds=given.rounds,
        seconds=given.seconds,
        clients=given.clients,
        steps=given.steps,
        rows=given.rows,
        jobs=given.jobs,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, too
    print(
        f"{describe()}\n- {options.rounds} rounds, {options.seconds:g} s a load, "
        f"{options.clients} clients, {options.steps} steps",
        flush=True,
    )
    failed = False
    for number in sorted(set(given.figure or FIGURES)):
        title, measure = FIGURES[number]
        say(f"{number}. {title}")
        try:
            with time_limit(60 * given.limit, f"figure {number}"):
                report = measure(options)
        except SkippedError as skipped:
            report = f"Not measured: {skipped}."
        except Exception as error:  # hours may have been spent, and more may be to come
            traceback.print_exc()
            report, failed = f"Failed: {error}.", True
        except KeyboardInterrupt:
            say("stopped")
            return 130
        print(f"\n### {number}. {title}\n\n{report}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

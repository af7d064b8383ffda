"""`fokker selfcheck`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.client_commands.console import (
    FAILED,
    REFUSED,
    ApiKey,
    AsJson,
    Url,
    print_json,
    print_table,
    reported,
    say,
    stop,
)

if TYPE_CHECKING:
    from service.selfcheck import Finding, Report

SHORT = 40  # characters of a value that is as it should be


def selfcheck(
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the model that is checked into a folder of checkpoints, and do no more.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Compare what a service answers with what it should: a model known in closed form.

    Checks the service at --url or FOKKER_URL, which must serve the model `analytic`; without
    either, it starts one of its own and stops it again.
    """
    from service.selfcheck import mixture

    if save is not None:
        path = save / f"{mixture.MODEL}.safetensors"
        path.write_bytes(mixture.checkpoint())
        say(f"wrote {path}")
        return
    with reported(), _service(url) as address:
        # A service of our own asks for no key, whatever the environment's is for.
        reports = _reports(address, api_key if url else "")
    if as_json:
        passed = all(report.passed for report in reports)
        checks = [report.document for report in reports]
        print_json({"url": address, "passed": passed, "checks": checks})
    else:
        _print(reports)
    if wrong := [report.check for report in reports if not report.passed]:
        stop(f"{address} is not as it should be: {', '.join(wrong)}", FAILED)


@contextmanager
def _service(url: str | None) -> Iterator[str]:
    from service.selfcheck.local import started

    if url is not None:
        yield url
        return
    say("no --url: starting a service of the shipped models to check")
    with started() as address:
        yield address


def _reports(url: str, api_key: str | None) -> list["Report"]:
    from rich.console import Console
    from rich.progress import track

    from service.selfcheck import CHECKS, mixture, reach, run

    with reach(url, api_key) as deployment:
        served = [card["name"] for card in deployment.client.models() if card["live"]]
        if mixture.MODEL not in served:
            stop(
                f"{url} serves no model {mixture.MODEL!r}, but {', '.join(served) or 'none'}; "
                "add it to its folder of models: fokker selfcheck --save FOLDER",
                REFUSED,
            )
        bar, hidden = Console(stderr=True), not sys.stderr.isatty()
        checks = track(CHECKS, "checking", transient=True, console=bar, disable=hidden)
        return [run(name, deployment) for name in checks]


def _print(reports: list["Report"]) -> None:
    rows = [
        (report.check, finding.what, *_shown(finding), "" if finding.passed else "WRONG")
        for report in reports
        for finding in report.findings
    ]
    print_table(("check", "what", "found", "allowed", ""), rows)
    right = sum(not row[-1] for row in rows)
    seconds = sum(report.seconds for report in reports)
    say(f"{right} of {len(rows)} comparisons are right, in {seconds:.0f} s")


def _shown(finding: "Finding") -> tuple[str, str]:
    """What was found and allowed; at length only where it matters."""
    found, allowed = _text(finding.found), _text(finding.allowed)
    if finding.passed and len(found) > SHORT:
        return f"{found[:SHORT]}…", "the same"
    return found, allowed


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    return "" if value is None else str(value)

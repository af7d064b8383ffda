"""The options that commands share, and what the operations do with theirs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.client_commands.console import (
    ApiKey,
    AsJson,
    Url,
    print_json,
    progress,
    say,
    session,
)
from service.client_commands.request import Document, build

if TYPE_CHECKING:
    from service.client import Client, Job


class FitName(StrEnum):
    """How an image of another size is made the model's."""

    EXACT = "exact"
    RESIZE = "resize"
    CROP = "crop"


class Priority(StrEnum):
    """What a job is for."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


Guidance = Annotated[float | None, typer.Option(help="Strength of guidance towards the class.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler or solver.")]
Solver = Annotated[
    str | None,
    typer.Option(help="ODE solver: euler, heun, rk4, dpmpp_2m, reversible or adaptive."),
]
Tolerance = Annotated[float | None, typer.Option(help="Tolerance of the adaptive solver.")]
Seed = Annotated[int | None, typer.Option(help="Seed; the same one gives the same answer.")]
Fit = Annotated[
    FitName | None,
    typer.Option(help="Of images of another size: refuse, scale, or scale and crop them."),
]
ImageFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...",
        exists=True,
        dir_okay=False,
        help="PNG, WebP, JPEG, or .npy in the data's own levels.",
    ),
]


@dataclass(frozen=True)
class Shared:
    """The options of every operation."""

    model: Annotated[str | None, typer.Option("--model", "-m", help="The model, by name.")] = None
    class_label: Annotated[int | None, typer.Option("--class", help="The class, by number.")] = None
    priority: Annotated[Priority | None, typer.Option(help="`batch` lets others go first.")] = None
    deadline: Annotated[
        str | None, typer.Option(help="End the job after so long, if need be: 90s, 15m, 2h.")
    ] = None
    request: Annotated[
        str | None,
        typer.Option(help="The request in JSON, below all other options; @FILE or - (stdin)."),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the request, its value in JSON: sampler.eta=0.5. May be repeated.",
        ),
    ] = None
    wait: Annotated[bool, typer.Option(help="Wait for the job, or print its id at once.")] = True
    as_json: AsJson = False
    url: Url = None
    api_key: ApiKey = None

    @contextmanager
    def finished(
        self, operation: str, base: Document, named: Mapping[str, Any], **files: Any
    ) -> Iterator[tuple[Client, Job]]:
        """Submit a job and give it when it has succeeded, with the client that it came by.

        base: the request of `--request`; named: what options say of its fields; files: what goes
        along, as for `Client.submit`. Without `--wait` the command ends here, by the job's id; an
        interrupted wait cancels the job.
        """
        from service.client.errors import require_success

        own = {"model": self.model, "class_label": self.class_label, "priority": self.priority}
        request = build(base, {**own, **named}, self.settings or ())
        with session(self.url, self.api_key) as client:
            job = client.submit(operation, request, deadline=self.deadline, **files)
            if self.wait:
                job = _wait(client, job)
            if self.as_json:
                print_json(dict(job.document))
            elif not self.wait:
                typer.echo(job.id)
            if not self.wait:
                raise typer.Exit
            yield client, require_success(job)


def _wait(client: Client, job: Job) -> Job:
    try:
        with progress(job.operation) as show:
            return client.wait(job, on_event=show)
    except KeyboardInterrupt:
        client.cancel(job)
        say(f"fokker: canceled job {job.id}")
        raise


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `Shared`, which it gets as its `shared`.

    typer reads options off a signature; this gives it one that has them all.
    """
    signature = inspect.signature(command, eval_str=True)
    fields = inspect.signature(Shared, eval_str=True).parameters
    own = [option for name, option in signature.parameters.items() if name != "shared"]

    @functools.wraps(command)
    def run(**options: Any) -> None:
        shared = Shared(**{name: options.pop(name) for name in fields})
        command(**options, shared=shared)

    vars(run)["__signature__"] = signature.replace(parameters=[*own, *fields.values()])
    return run

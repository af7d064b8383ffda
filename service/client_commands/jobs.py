"""`fokker jobs`: list jobs, look at one, follow it, keep its files, cancel and delete it."""

from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from service.client_commands.console import (
    EPILOG,
    ApiKey,
    AsJson,
    Url,
    print_json,
    print_table,
    say,
    session,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs' ids.")]


def build_app() -> typer.Typer:
    """The subcommands; without one, the list."""
    app = typer.Typer(help="List jobs, or do something with one.", epilog=EPILOG)
    app.callback(invoke_without_command=True)(listing)
    for command in (show, events, save, cancel, delete):
        app.command(epilog=EPILOG, no_args_is_help=True)(command)
    return app


def listing(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="Only those, e.g. running.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List jobs, or do something with one."""
    if context.invoked_subcommand is not None:
        _refuse_options_of_the_list(context)
        return
    with session(url, api_key) as client:
        found = list(islice(client.jobs(status=status, page=min(limit, 200)), limit))
        if as_json:
            print_json({"jobs": [dict(job.document) for job in found]})
            return
        rows = [
            (job.id, job.status, job.operation, job.model, _time(job.document["created"]))
            for job in found
        ]
        print_table(("id", "status", "operation", "model", "created"), rows)


def _refuse_options_of_the_list(context: typer.Context) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            detail = f"options go behind it: fokker jobs {context.invoked_subcommand} …"
            raise typer.BadParameter(detail, param_hint=f"{context.invoked_subcommand}")


def show(job_id: Id, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Print a job's state."""
    with session(url, api_key) as client:
        job = client.job(job_id)
        if as_json:
            print_json(dict(job.document))
            return
        shown = ("id", "operation", "model", "status", "priority", "attempt")
        rows = [(name, job.document[name]) for name in shown]
        rows += [
            (name, _time(time))
            for name in ("created", "started", "finished", "deadline")
            if (time := job.document[name]) is not None
        ]
        if job.error is not None:
            rows.append(("error", job.error.get("detail")))
        rows.append(("artifacts", ", ".join(job.artifacts)))
        print_table(("field", "value"), rows)


def events(
    job_id: Id,
    after: Annotated[str | None, typer.Option(help="Begin behind the event of this id.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Follow a job's events to its end; with --json one object a line, previews included."""
    with session(url, api_key) as client:
        for event in client.events(job_id, after=after):
            data = dict(event.data)
            if as_json:
                print_json({"id": event.id, "type": event.type, "data": data}, indent=None)
                continue
            if event.type == "preview":
                data["images"] = f"{len(data['images'])} images"
            told = " ".join(f"{name}={value}" for name, value in data.items() if name != "result")
            typer.echo(f"{event.id} {event.type} {told}".rstrip())


def save(
    job_id: Id,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where; made if needed.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Write all files of a job, which it has when it has succeeded, into a folder."""
    with session(url, api_key) as client:
        for name in client.job(job_id).artifacts:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / Path(name).name
            path.write_bytes(client.artifact(job_id, name))
            typer.echo(path)


def cancel(ids: Ids, url: Url = None, api_key: ApiKey = None) -> None:
    """Cancel jobs: queued ones end at once, running ones soon, finished ones stay."""
    with session(url, api_key) as client:
        for job_id in ids:
            job = client.cancel(job_id)
            to_stop = not job.finished and job.document["cancel_requested"]
            say(f"{job.id} {'is about to stop' if to_stop else job.status}")


def delete(ids: Ids, url: Url = None, api_key: ApiKey = None) -> None:
    """Remove jobs with their files."""
    with session(url, api_key) as client:
        for job_id in ids:
            client.delete(job_id)
            say(f"{job_id} deleted")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")

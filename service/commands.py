"""The service's commands; what they need is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `serve`, `key`, `inspect`, `up` and the client's commands to the command line."""
    from service.client_commands import register_client
    from service.up import register_up

    app.command()(serve)
    app.command()(key)
    app.command()(inspect)
    register_up(app)
    register_client(app)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the port.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve a network without API keys.")
    ] = False,
) -> None:
    """Serve the REST API over the Redis at FOKKER_REDIS_URL."""
    from service.api.server import run
    from service.settings import Settings, SettingsError

    given = {"host": host, "port": port, "no_auth": no_auth or None}
    given["api_processes"] = processes
    try:
        run(Settings.load(**{name: value for name, value in given.items() if value is not None}))
    except SettingsError as error:
        typer.echo(f"fokker serve: {error}", err=True)
        raise typer.Exit(2) from error


def key(
    owner: Annotated[str, typer.Argument(help="Whose jobs the key opens.")],
    hashed: Annotated[
        bool, typer.Option("--hashed", help="Print the line for FOKKER_API_KEYS_FILE, too.")
    ] = False,
) -> None:
    """Make an API key: the entry for FOKKER_API_KEYS, which is all that knows it."""
    from service.api.auth import OWNER, Key, new_key

    if not OWNER.fullmatch(owner):
        typer.echo("fokker key: an owner is 1 to 64 letters, digits, dots, - or _", err=True)
        raise typer.Exit(2)
    made = new_key()
    typer.echo(f"{owner}:{made}")
    if hashed:
        typer.echo(str(Key.of(owner, made)))


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, *.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it, as JSON.")] = False,
) -> None:
    """Print what a checkpoint says of itself; reads its header alone and needs no torch."""
    import json

    from service import inspection

    try:
        found = inspection.inspect(checkpoint)
    except inspection.InspectionError as error:
        typer.echo(f"fokker inspect: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    lines = list(found.lines())
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}")

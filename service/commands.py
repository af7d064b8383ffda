"""The service's commands; what they need is imported when they run."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `serve`, `up` and the client's commands to the command line."""
    from service.client_commands import register_client
    from service.up import register_up

    app.command()(serve)
    register_up(app)
    register_client(app)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve the REST API over the Redis at FOKKER_REDIS_URL."""
    import uvicorn

    from service.api import create_app
    from service.settings import Settings, SettingsError

    try:
        settings = Settings.load()
        api = create_app(settings)
    except SettingsError as error:
        typer.echo(f"fokker serve: {error}", err=True)
        raise typer.Exit(2) from error
    uvicorn.run(
        api,
        host=host or settings.host,
        port=settings.port if port is None else port,
        log_level=settings.log_level.lower(),
        # Open event streams must not hold up a shutdown: their clients resume elsewhere.
        timeout_graceful_shutdown=3,
    )

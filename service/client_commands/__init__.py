"""The commands that talk to a service: the operations, `models`, `jobs` and `selfcheck`.

Registering is light; the client is imported when a command runs.
"""

import typer

from service.client_commands import jobs, models, operations, selfcheck
from service.client_commands.console import EPILOG


def register_client(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (operations.generate, operations.invert, operations.loglik, models.models):
        app.command(epilog=EPILOG, no_args_is_help=command is not models.models)(command)
    app.command(epilog=EPILOG)(selfcheck.selfcheck)
    app.add_typer(jobs.build_app(), name="jobs")

"""The command of the offline job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from training.evaluation_commands import register_evaluation


def register(app: typer.Typer) -> None:
    """Add `fokker train`, `evaluate`, `features` and `publish`."""
    app.command()(train)
    register_evaluation(app)
    app.command()(publish)


def train(
    config: Annotated[Path, typer.Argument(help="TOML file, e.g. training/configs/digits.toml.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, its card and samples.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value instead of the file's; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")
    ] = False,
) -> None:
    """Train a model and write its checkpoint, sample grid and card into a folder.

    SIGTERM or Ctrl-C saves the run's state and ends; --resume continues it. Under
    `torchrun --nproc-per-node N -m service train …` N processes share each batch.
    """
    from training.config import Config, ConfigError
    from training.data_errors import DataError
    from training.folder import RunError
    from training.loop import Stopped, TrainingDivergedError
    from training.run import run
    from training.state import StateError

    try:
        run(
            Config.read(config, changes or []),
            name=config.stem,
            out=out,
            command=f"fokker train {config} --out {out}{_said(changes or [])}",
            resume=resume,
        )
    except Stopped as stop:
        typer.echo(f"fokker train: {stop}", err=True)
        raise typer.Exit(128 + stop.signal_number) from stop
    except KeyboardInterrupt as stop:
        typer.echo("\nfokker train: interrupted; continue with --resume", err=True)
        raise typer.Exit(130) from stop
    except (ConfigError, DataError, RunError, StateError, TrainingDivergedError, OSError) as error:
        typer.echo(f"fokker train: {error}", err=True)
        raise typer.Exit(1) from error


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint in it.")],
    name: Annotated[str, typer.Argument(help="Name by which requests ask for the model.")],
    models: Annotated[
        Path,
        typer.Option(envvar="FOKKER_MODELS", help="Folder whose checkpoints the workers serve."),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace another checkpoint of this name.")
    ] = False,
    keep_days: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Days that replaced versions stay, for jobs that were submitted with them.",
        ),
    ] = 7.0,
) -> None:
    """Put a run's checkpoint, card and samples into the folder that workers serve, at once.

    Running workers offer it within seconds.
    """
    from training import publish as publishing

    try:
        done = publishing.publish(run, name, models, force=force, kept_days=keep_days)
    except publishing.PublishError as error:
        typer.echo(f"fokker publish: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{done.path}: {done.digest}")
    if done.kept is not None:
        typer.echo(f"replaced {done.replaced}, which is kept in {done.kept.parent}")
    for path in done.dropped:
        typer.echo(f"removed {path}")


def _said(changes: list[str]) -> str:
    return "".join(f" --set {shlex.quote(change)}" for change in changes)

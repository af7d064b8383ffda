"""The command of the offline job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `fokker train`."""
    app.command()(train)


def train(
    config: Annotated[Path, typer.Argument(help="TOML file, e.g. training/configs/digits.toml.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, its card and samples.")],
) -> None:
    """Train a model and write its checkpoint, sample grid and card into a folder."""
    from training.config import Config, ConfigError
    from training.loop import TrainingDivergedError
    from training.run import run

    try:
        run(
            Config.read(config),
            name=config.stem,
            out=out,
            command=f"fokker train {config} --out {out}",
        )
    except KeyboardInterrupt as stop:
        typer.echo("\nstopped: no checkpoint was written, and a run cannot be resumed", err=True)
        raise typer.Exit(130) from stop
    except (ConfigError, TrainingDivergedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error

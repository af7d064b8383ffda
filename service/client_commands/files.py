"""Where the files of a finished job go: `--out`, a file or a folder."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from service.client_commands.console import REFUSED, stop

if TYPE_CHECKING:
    from service.client import Client, Job


class Format(StrEnum):
    """What generated images are."""

    PNG = "png"
    WEBP = "webp"
    NPY = "npy"
    SAFETENSORS = "safetensors"


class LatentFormat(StrEnum):
    """What latents are."""

    SAFETENSORS = "safetensors"
    NPY = "npy"


def format_of(out: Path | None, formats: type[StrEnum]) -> str | None:
    """The format that a file's name asks for; None for a folder: one that exists, or has no dot.

    Raises typer.BadParameter for another name, which is more likely a slip than a folder.
    """
    if out is None or not out.suffix or out.is_dir():
        return None
    ending = out.suffix.lower().removeprefix(".")
    if ending in set(formats):
        return ending
    endings = ", ".join(f".{known}" for known in formats)
    detail = (
        f"{out} is no folder, and nothing is written as {out.suffix}; give a file that ends in one "
        f"of {endings}, a folder that exists, or the name of a new one, without a dot"
    )
    raise typer.BadParameter(detail, param_hint="--out")


def agreed(asked: str | None, out: Path | None) -> str | None:
    """The format of images asked for by `--format` or by a file's name.

    Raises typer.BadParameter where the two differ, or the name is none that can be written.
    """
    named = format_of(out, Format)
    if asked is not None and named is not None and asked != named:
        detail = f"{out} is to be {named}, but --format is {asked}; make them agree"
        raise typer.BadParameter(detail, param_hint="--out")
    return named or asked


def save_images(client: Client, job: Job, out: Path) -> list[Path]:
    """Write the images to a folder, or into one file: the image, the array, or a sheet of all."""
    from service.client.results import Generated, read_picture

    assert job.result is not None
    names = Generated.artifacts(job)
    if format_of(out, Format) is None:
        return [_write(client, job, name, out / Path(name).name) for name in names]
    if len(names) == 1:
        return [_write(client, job, names[0], out)]
    if job.result["grid"] is None:
        raise OSError(f"{len(names)} images make one file as their grid, which was left out")
    out.parent.mkdir(parents=True, exist_ok=True)
    read_picture(client.artifact(job, job.result["grid"])).save(out, lossless=True)
    return [out]


def save_latents(client: Client, job: Job, out: Path) -> list[Path]:
    """Write the latents into a file, or into a folder by their own name."""
    from service.client.results import Inverted

    (name,) = Inverted.artifacts(job)
    folder = format_of(out, LatentFormat) is None
    return [_write(client, job, name, out / Path(name).name if folder else out)]


def keep(
    save: Callable[[Client, Job, Path], list[Path]], client: Client, job: Job, out: Path | None
) -> list[Path]:
    """Save a finished job's files, if that is wanted; they are not lost if it does not work."""
    if out is None:
        return []
    try:
        return save(client, job, out)
    except OSError as error:
        stop(f"{error}; the files are still there: fokker jobs save {job.id} FOLDER", REFUSED)


def _write(client: Client, job: Job, name: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(client.artifact(job, name))
    return path

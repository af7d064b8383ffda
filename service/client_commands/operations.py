"""`fokker generate`, `fokker invert`, `fokker loglik`: submit a job, wait, print and keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.client_commands.console import print_table, say
from service.client_commands.files import (
    Format,
    LatentFormat,
    agreed,
    format_of,
    keep,
    save_images,
    save_latents,
)
from service.client_commands.options import (
    Fit,
    Guidance,
    ImageFiles,
    Seed,
    Shared,
    Solver,
    Steps,
    Tolerance,
    with_shared,
)
from service.client_commands.request import given, ode_solver, read, sampler

if TYPE_CHECKING:
    from service.client import Job


@with_shared
def generate(
    shared: Shared,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Images to draw.")] = None,
    seed: Seed = None,
    guidance: Guidance = None,
    sampler_name: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="ddpm, ddim, langevin, annealed_langevin, predictor_corrector, reverse_sde or "
            "pf_ode.",
        ),
    ] = None,
    steps: Steps = None,
    solver: Solver = None,
    tolerance: Tolerance = None,
    latents: Annotated[
        str | None,
        typer.Option(help="Decode these instead: a safetensors file, or the id of an invert job."),
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the images; --out's, or png.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the images go: a .png or .webp file (one sheet of all), a .npy or "
            ".safetensors file, or a folder."
        ),
    ] = None,
) -> None:
    """Draw images, or decode latents."""
    base = read(shared.request)
    named = {
        "count": count,
        "seed": seed,
        "guidance": guidance,
        "sampler": sampler(base, sampler_name, steps, solver, tolerance),
        "format": agreed(form, out),
    }
    source = Path(latents) if latents is not None and Path(latents).is_file() else latents
    with shared.finished("generate", base, named, latents=source) as (client, job):
        saved = keep(save_images, client, job, out)
        if not shared.as_json:
            _print_images(job, ("seed", "nfe", "artifact"))
            _say_where(job, saved)


@with_shared
def invert(
    shared: Shared,
    images: ImageFiles,
    fit: Fit = None,
    guidance: Guidance = None,
    solver: Solver = None,
    steps: Steps = None,
    tolerance: Tolerance = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the latents go: a .safetensors or .npy file, or a folder."),
    ] = None,
) -> None:
    """Encode images into their latents, and tell how exactly they come back."""
    named = {
        "fit": fit,
        "guidance": guidance,
        "solver": ode_solver(solver, steps, tolerance),
        "format": format_of(out, LatentFormat),
    }
    with shared.finished("invert", read(shared.request), named, images=images) as (client, job):
        saved = keep(save_latents, client, job, out)
        if not shared.as_json:
            columns = ("round_trip_rmse", "round_trip_max_error", "norm_ratio", "nfe", "converged")
            _print_images(job, columns, images)
            _say_where(job, saved)


@with_shared
def loglik(
    shared: Shared,
    images: ImageFiles,
    fit: Fit = None,
    method: Annotated[
        str | None, typer.Option(help="pf_ode, the likelihood; or elbo, a lower bound.")
    ] = None,
    tolerance: Tolerance = None,
    probes: Annotated[
        int | None, typer.Option(help="Hutchinson probes of the divergence; 0: exactly.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Dequantised samples of each image; 0: none.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Give the log-likelihood of images, in nats and bits per dimension."""
    named = {
        "fit": fit,
        "method": method,
        "solver": ode_solver(None, None, tolerance),
        "divergence": None if probes is None else _divergence(probes),
        "dequantization": {"kind": "uniform", "samples": samples} if samples else None,
        "seed": seed,
    }
    base = read(shared.request)
    if samples == 0:
        base |= {"dequantization": None}
    with shared.finished("loglik", base, named, images=images) as (_, job):
        if not shared.as_json:
            _print_likelihoods(job, images)


def _divergence(probes: int) -> dict[str, Any]:
    return {"kind": "hutchinson", "probes": probes} if probes else {"kind": "exact"}


def _images(job: Job) -> list[Mapping[str, Any]]:
    assert job.result is not None
    return list(job.result["images"])


def _print_images(job: Job, columns: tuple[str, ...], files: Sequence[Path] = ()) -> None:
    """Print these values of each image, after its file's name or its number."""
    entries = _images(job)
    heads = [path.name for path in files] if files else [entry["index"] for entry in entries]
    rows = [
        (head, *(_shown(entry.get(column)) for column in columns))
        for head, entry in zip(heads, entries, strict=True)
    ]
    print_table(("image", *columns), rows)


def _print_likelihoods(job: Job, files: Sequence[Path]) -> None:
    """Print each image's likelihood with its standard errors, by their source."""
    rows = []
    for path, image in zip(files, _images(job), strict=True):
        errors = given(image["standard_error"])
        told = ", ".join(f"±{_shown(error)} ({source})" for source, error in errors.items())
        values = (_shown(image[name]) for name in ("bits_per_dim", "log_likelihood"))
        rows.append((path.name, *values, told, image["nfe"]))
    print_table(("image", "bits/dim", "nats", "standard error", "nfe"), rows)


def _shown(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def _say_where(job: Job, saved: list[Path]) -> None:
    if saved:
        say(f"wrote {saved[0]}" + (f" … {saved[-1]}" if len(saved) > 1 else ""))
    else:
        say(f"job {job.id}; its files: fokker jobs save {job.id} FOLDER (or give --out)")

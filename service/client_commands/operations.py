"""`fokker generate`, `fokker invert`, `fokker loglik`: submit a job, wait, print and keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.client_commands.console import (
    REFUSED,
    ApiKey,
    AsJson,
    Url,
    print_json,
    print_table,
    progress,
    say,
    session,
    stop,
)
from service.client_commands.request import build, given, ode_solver, read, sampler

if TYPE_CHECKING:
    from service.client import Client, Job


class Format(StrEnum):
    """What generated images are."""

    PNG = "png"
    WEBP = "webp"
    NPY = "npy"
    SAFETENSORS = "safetensors"


class FitName(StrEnum):
    """How an image of another size is made the model's."""

    EXACT = "exact"
    RESIZE = "resize"
    CROP = "crop"


class Priority(StrEnum):
    """What a job is for."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


Model = Annotated[str | None, typer.Option("--model", "-m", help="The model, by name.")]
ClassLabel = Annotated[int | None, typer.Option("--class", help="The class, by number.")]
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
PriorityOption = Annotated[Priority | None, typer.Option(help="`batch` lets others go first.")]
Deadline = Annotated[
    str | None, typer.Option(help="End the job after so long, if need be: 90s, 15m, 2h.")
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of the request, its value in JSON: sampler.eta=0.5. May be repeated.",
    ),
]
Request = Annotated[
    str | None,
    typer.Option(help="The request in JSON, below all other options; @FILE or - (stdin)."),
]
Wait = Annotated[bool, typer.Option(help="Wait for the job, or print its id at once.")]
ImageFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE...",
        exists=True,
        dir_okay=False,
        help="PNG, WebP, JPEG, or .npy in the data's own levels.",
    ),
]


def generate(
    model: Model = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Images to draw.")] = None,
    seed: Seed = None,
    class_label: ClassLabel = None,
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
    priority: PriorityOption = None,
    deadline: Deadline = None,
    request: Request = None,
    settings: Set = [],  # noqa: B006 - typer copies it
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Draw images, or decode latents."""
    base = read(request)
    named = {
        "model": model,
        "count": count,
        "seed": seed,
        "class_label": class_label,
        "guidance": guidance,
        "sampler": sampler(base, sampler_name, steps, solver, tolerance),
        "format": _format(form, out),
        "priority": priority,
    }
    asked = build(base, named, settings)
    source = Path(latents) if latents is not None and Path(latents).is_file() else latents
    with session(url, api_key) as client:
        submitted = client.submit("generate", asked, latents=source, deadline=deadline)
        job = _finish(client, submitted, wait, as_json)
        saved = _keep(save_images, client, job, out)
        if not as_json:
            _print_images(job, ("seed", "nfe", "artifact"))
            _say_where(job, saved)


def invert(
    images: ImageFiles,
    model: Model = None,
    fit: Fit = None,
    class_label: ClassLabel = None,
    guidance: Guidance = None,
    solver: Solver = None,
    steps: Steps = None,
    tolerance: Tolerance = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the latents go: a .safetensors file, or a folder."),
    ] = None,
    priority: PriorityOption = None,
    deadline: Deadline = None,
    request: Request = None,
    settings: Set = [],  # noqa: B006 - typer copies it
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Encode images into their latents, and tell how exactly they come back."""
    base = read(request)
    named = {
        "model": model,
        "fit": fit,
        "class_label": class_label,
        "guidance": guidance,
        "solver": ode_solver(solver, steps, tolerance),
        "priority": priority,
    }
    asked = build(base, named, settings)
    with session(url, api_key) as client:
        submitted = client.submit("invert", asked, images=images, deadline=deadline)
        job = _finish(client, submitted, wait, as_json)
        saved = _keep(save_latents, client, job, out)
        if not as_json:
            columns = ("round_trip_rmse", "round_trip_max_error", "norm_ratio", "nfe", "converged")
            _print_images(job, columns, images)
            _say_where(job, saved)


def loglik(
    images: ImageFiles,
    model: Model = None,
    fit: Fit = None,
    class_label: ClassLabel = None,
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
    priority: PriorityOption = None,
    deadline: Deadline = None,
    request: Request = None,
    settings: Set = [],  # noqa: B006 - typer copies it
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give the log-likelihood of images, in nats and bits per dimension."""
    base = read(request)
    named = {
        "model": model,
        "fit": fit,
        "class_label": class_label,
        "method": method,
        "solver": ode_solver(None, None, tolerance),
        "divergence": None if probes is None else _divergence(probes),
        "dequantization": {"kind": "uniform", "samples": samples} if samples else None,
        "seed": seed,
        "priority": priority,
    }
    if samples == 0:
        settings = ["dequantization=null", *settings]
    asked = build(base, named, settings)
    with session(url, api_key) as client:
        submitted = client.submit("loglik", asked, images=images, deadline=deadline)
        job = _finish(client, submitted, wait, as_json)
        if not as_json:
            _print_likelihoods(job, images)


def save_images(client: Client, job: Job, out: Path) -> list[Path]:
    """Write the images to a folder, or into one file: the image, the array, or a sheet of all."""
    from service.client.results import Generated, read_picture

    assert job.result is not None
    names = Generated.artifacts(job)
    if not _is_file(out):
        return [_write(client, job, name, out / Path(name).name) for name in names]
    if len(names) == 1:
        return [_write(client, job, names[0], out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    read_picture(client.artifact(job, job.result["grid"])).save(out, lossless=True)
    return [out]


def save_latents(client: Client, job: Job, out: Path) -> list[Path]:
    """Write the latents into a file, or into a folder by their own name."""
    from service.client.results import Inverted

    (name,) = Inverted.artifacts(job)
    path = out if out.suffix == ".safetensors" else out / Path(name).name
    return [_write(client, job, name, path)]


def _keep(
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


def _is_file(out: Path) -> bool:
    return out.suffix.lower().removeprefix(".") in set(Format)


def _format(form: Format | None, out: Path | None) -> str | None:
    """The format asked for, which a file's name also asks for. Raises typer.BadParameter."""
    if out is None or not _is_file(out):
        return form
    named = Format(out.suffix.lower().removeprefix("."))
    if form is not None and form != named:
        detail = f"{out} is to be {named}, but --format is {form}; make them agree"
        raise typer.BadParameter(detail, param_hint="--out")
    return named


def _divergence(probes: int) -> dict[str, Any]:
    return {"kind": "hutchinson", "probes": probes} if probes else {"kind": "exact"}


def _finish(client: Client, job: Job, wait: bool, as_json: bool) -> Job:
    """Wait for the job and give it, or print its id and exit; an interrupted wait cancels it."""
    from service.client.errors import require_success

    if not wait:
        if as_json:
            print_json(dict(job.document))
        else:
            typer.echo(job.id)
        raise typer.Exit
    try:
        with progress(job.operation) as show:
            job = client.wait(job, on_event=show)
    except KeyboardInterrupt:
        client.cancel(job)
        say(f"fokker: canceled job {job.id}")
        raise
    if as_json:
        print_json(dict(job.document))
    return require_success(job)


def _images(job: Job) -> list[Mapping[str, Any]]:
    assert job.result is not None
    return list(job.result["images"])


def _print_images(job: Job, columns: tuple[str, ...], files: list[Path] | None = None) -> None:
    """Print these values of each image, after its file's name or its number."""
    entries = _images(job)
    heads = [path.name for path in files] if files else [entry["index"] for entry in entries]
    rows = [
        (head, *(_shown(entry.get(column)) for column in columns))
        for head, entry in zip(heads, entries, strict=True)
    ]
    print_table(("image", *columns), rows)


def _print_likelihoods(job: Job, files: list[Path]) -> None:
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

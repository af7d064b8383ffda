"""The files that a job leaves: images in the format that was asked for, a grid, latents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from model import pictures
from service.jobs import parameters as p
from service.jobs.arrays import pack
from worker.shelf import ServedModel

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "npy": "application/x-npy",
    "safetensors": "application/vnd.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A named file; ``encode`` makes its bytes, away from the device's thread."""

    name: str
    media_type: str
    encode: Callable[[], bytes]


def image_name(job: p.GenerateParameters, index: int) -> str:
    """The file that holds an image of the job: its own, or the array of all."""
    return f"{index}.{job.format}" if is_picture(job.format) else f"images.{job.format}"


def is_picture(kind: str) -> bool:
    """Whether a format holds one image a file, to be looked at."""
    return kind in ("png", "webp")


def of_images(
    served: ServedModel, job: p.GenerateParameters, x: Tensor, seeds: Sequence[int] | None
) -> list[Artifact]:
    """The images x ``(N, C, H, W)`` in the job's format, without the grid.

    Pictures, one a file; or one array of all, in the data's own levels, float64 and not rounded.
    seeds: the images' own, None for those that were decoded from latents.
    """
    spec = served.checkpoint.description.data
    if is_picture(job.format):
        return [
            _file(image_name(job, i), partial(pictures.encode, pixels, job.format))
            for i, pixels in enumerate(pictures.to_bytes(spec, x))
        ]
    levels = spec.to_levels(x).double().numpy()
    if job.format == "npy":
        return [_file("images.npy", partial(pictures.npy, levels))]
    metadata = _origin(served) | {
        "levels": str(spec.levels),
        "seeds": json.dumps(seeds),
        "sampler": job.sampler.model_dump_json(),
        "class_label": json.dumps(job.class_label),
        "guidance": json.dumps(job.guidance),
    }
    return [_file("images.safetensors", partial(pack, {"images": levels}, metadata))]


def grid_of(served: ServedModel, job: p.GenerateParameters, x: Tensor) -> Artifact | None:
    """All images x ``(N, C, H, W)`` in one picture, if the job is to have it.

    A WebP of WebPs, unless it is too large for one; else a PNG.
    """
    if not (is_picture(job.format) if job.grid is None else job.grid):
        return None
    sheet = pictures.grid(pictures.to_bytes(served.checkpoint.description.data, x))
    fits = max(sheet.shape[:2]) <= pictures.WEBP_SIDE
    kind = "webp" if job.format == "webp" and fits else "png"
    return _file(f"grid.{kind}", partial(pictures.encode, sheet, kind))


def of_latents(
    served: ServedModel, job: p.InvertParameters, latents: Tensor, companion: Tensor | None
) -> Artifact:
    """The latents ``(N, C, H, W)``, and the other half of each where a solver encodes pairs."""
    if job.format == "npy":
        return _file("latents.npy", partial(pictures.npy, latents.numpy()))
    metadata = _origin(served) | {
        "device": served.denoiser.device.type,
        "reproducible_rows": str(served.denoiser.bucket),
        "solver": job.solver.model_dump_json(),
        "class_label": str(job.class_label),
        "guidance": str(job.guidance),
    }
    arrays = {"latents": latents.numpy()}
    if companion is not None:
        arrays["companion"] = companion.numpy()
    return _file("latents.safetensors", partial(pack, arrays, metadata))


def _origin(served: ServedModel) -> dict[str, str]:
    return {"model": served.name, "digest": served.checkpoint.digest}


def _file(name: str, encode: Callable[[], bytes]) -> Artifact:
    return Artifact(name=name, media_type=MEDIA_TYPES[name.rpartition(".")[2]], encode=encode)

"""From what a caller has (pictures, arrays, latents, options) to the call that submits a job."""

import io
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.client.calls import Call
from service.client.errors import InvalidInput
from service.client.job import Job
from service.client.results import Inverted
from service.jobs.arrays import pack
from service.jobs.parameters import Priority

ImageLike = str | PathLike[str] | bytes | Image.Image | NDArray[Any]
"""A path, the bytes of a file, a picture, or an array (H, W) or (H, W, C) in the data's levels."""

Images = ImageLike | Iterable[ImageLike]
"""Images, or one; the first axis of an array alone counts images: (N, H, W) or (N, H, W, C)."""

LatentsLike = Inverted | Job | str | PathLike[str] | bytes | NDArray[np.floating[Any]]
"""Latents: those of an earlier `invert` (its result, its job, or that job's id as a string), a
safetensors file (a path other than a string, or its bytes), or floats of shape (N, C, H, W)."""

Named = str | Mapping[str, Any]
"""A sampler or a solver: its name, or its name and options: `{"name": "ddim", "eta": 1.0}`."""

Deadline = float | str
"""Seconds, or a number with its unit: `"500ms"`, `"90s"`, `"15m"`, `"2h"`."""

IMAGE_KINDS = (
    "an image is a path, the bytes of a file, a PIL image, or an array (H, W) or (H, W, C)"
)
LATENT_KINDS = (
    "latents are the result of `invert`, its job or that job's id, a safetensors file (a "
    "pathlib.Path, or bytes), or floats of shape (N, C, H, W)"
)

PICTURE = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
BYTES = "application/octet-stream"

Part = tuple[str, tuple[str | None, bytes, str]]
"""A multipart part as httpx takes it: its name, then file name, content and media type."""


class Options(TypedDict, total=False):
    """What all operations take; the service's own defaults stand for what is left out."""

    class_label: int | None
    priority: Priority
    deadline: Deadline | None


class GenerateOptions(Options, total=False):
    """What `generate` takes besides the model."""

    count: int
    seed: int | None
    seeds: list[int] | None
    guidance: float
    sampler: Named
    latents: LatentsLike
    init: Mapping[str, Any] | None
    stream: Mapping[str, Any] | None
    format: Literal["png", "webp", "npy", "safetensors"]
    grid: bool | None


Fit = Literal["exact", "resize", "crop"]


class InvertOptions(Options, total=False):
    """What `invert` takes besides images and the model."""

    guidance: float
    solver: Named
    stream: Mapping[str, Any] | None
    fit: Fit
    format: Literal["safetensors", "npy"]


class LoglikOptions(Options, total=False):
    """What `loglik` takes besides images and the model."""

    method: Literal["pf_ode", "elbo"]
    solver: Named
    divergence: Mapping[str, Any]
    dequantization: Mapping[str, Any] | None
    bound: Mapping[str, Any]
    seed: int | None
    fit: Fit


@dataclass(frozen=True)
class Submission:
    """A job to be submitted: its operation, the JSON request, and the files that go along."""

    operation: str
    request: Mapping[str, Any]
    images: Images | None = None
    latents: LatentsLike | None = None
    deadline: Deadline | None = None

    @classmethod
    def of(
        cls, operation: str, model: str, options: Mapping[str, Any], images: Images | None = None
    ) -> "Submission":
        """The submission of an operation's options, as `GenerateOptions` and its like name them.

        Raises InvalidInput where an operation on images is given none.
        """
        if images is None and operation != "generate":
            raise InvalidInput(f"images: none given; {IMAGE_KINDS}")
        request = {"model": model, **options}
        latents, deadline = request.pop("latents", None), request.pop("deadline", None)
        return cls(operation, request, images, latents, deadline)

    def call(self) -> Call:
        """The call, under an `Idempotency-Key` of its own: sent again, it submits the same job.

        Raises InvalidInput for what cannot be sent.
        """
        request = {name: _by_name(name, _plain(name, v)) for name, v in self.request.items()}
        parts = [] if self.images is None else image_parts(self.images)
        if self.latents is not None:
            request, latents = _with_latents(request, self.latents)
            parts += latents
        headers = {"Idempotency-Key": secrets.token_urlsafe(18)}
        if self.deadline is not None:
            given = self.deadline
            headers["Cancel-After"] = given if isinstance(given, str) else f"{given:.3f}s"
        body: dict[str, Any] = {"json": request}
        if parts:
            text = json.dumps(request, allow_nan=False).encode()
            body = {"files": [("request", (None, text, "application/json")), *parts]}
        return Call("POST", f"/{self.operation}", body | {"headers": headers})


def _plain(name: str, value: Any) -> Any:
    """The value as JSON has it, NumPy's numbers and arrays as plain ones.

    Raises InvalidInput for what JSON cannot say.
    """

    def other(found: Any) -> Any:
        if isinstance(found, np.generic | np.ndarray):
            return found.tolist()
        raise TypeError(f"{type(found).__name__} is none of JSON's values")

    try:
        return json.loads(json.dumps(value, default=other, allow_nan=False))
    except (TypeError, ValueError) as error:
        detail = f"{error}; give numbers that are finite, text, lists and mappings of these"
        raise InvalidInput(f"{name}: {detail}") from error


def _by_name(name: str, value: Any) -> Any:
    return {"name": value} if name in ("sampler", "solver") and isinstance(value, str) else value


def image_parts(images: Images) -> list[Part]:
    """One part `image` an image. Raises InvalidInput for one that cannot be sent."""
    return [("image", _file(index, image)) for index, image in enumerate(_each(images))]


def _each(images: Images) -> Iterable[ImageLike]:
    if isinstance(images, np.ndarray) and images.ndim < 3:
        raise InvalidInput(
            f"images: an array of shape {images.shape}; its first axis must count images, "
            "(N, H, W) or (N, H, W, C); give `array[None]` for one image"
        )
    if isinstance(images, str | PathLike | bytes | Image.Image):
        return [images]
    try:
        return list(images)
    except TypeError as error:
        detail = f"given {_kind(images)}; {IMAGE_KINDS}, or several of these"
        raise InvalidInput(f"images: {detail}") from error


def _file(index: int, image: ImageLike) -> tuple[str, bytes, str]:
    field = f"images[{index}]"
    if isinstance(image, bytes):
        return str(index), image, BYTES
    if isinstance(image, str | PathLike):
        path = Path(image)
        return path.name, _read(field, path), PICTURE.get(path.suffix.lower(), BYTES)
    stream = io.BytesIO()
    if isinstance(image, Image.Image):
        try:
            image.save(stream, "PNG")
        except OSError as error:
            detail = f"{error}; convert it to L, RGB or RGBA, or give an array in the data's levels"
            raise InvalidInput(f"{field}: {detail}") from error
        return f"{index}.png", stream.getvalue(), PICTURE[".png"]
    array = _array(image)
    if array is None or array.ndim not in (2, 3):
        raise InvalidInput(f"{field}: given {_kind(image)}; {IMAGE_KINDS}")
    np.save(stream, array, allow_pickle=False)
    return f"{index}.npy", stream.getvalue(), BYTES


def _array(given: object) -> NDArray[Any] | None:
    """An array of real numbers, None for what is none."""
    try:
        array = np.asarray(given)
    except Exception:  # nested lists of unequal lengths, or whatever an object's own way raises
        return None
    return array if array.dtype.kind in "buif" else None


def _kind(given: object) -> str:
    if isinstance(given, np.ndarray):
        return f"an array of {given.dtype} of shape {given.shape}"
    return f"a value of type {type(given).__name__}"


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{field}: {path} cannot be read: {error.strerror}") from error


def _with_latents(
    request: dict[str, Any], latents: LatentsLike
) -> tuple[dict[str, Any], list[Part]]:
    """The request that decodes `latents`, by the solver that encoded them if that is known."""
    sampler: dict[str, Any] = {"name": "pf_ode"}
    wanted: dict[str, Any] = {}
    parts: list[Part] = []
    match latents:
        case Inverted():
            wanted["job"] = latents.job.id
            sampler["solver"] = latents.job.parameters["solver"]
        case Job():
            wanted["job"] = latents.id
        case str():
            wanted["job"] = latents
        case bytes():
            parts = [_latents_part(latents)]
        case PathLike():
            parts = [_latents_part(_read("latents", Path(latents)))]
        case _:
            if (array := _array(latents)) is None:
                raise InvalidInput(f"latents: given {_kind(latents)}; {LATENT_KINDS}")
            parts = [_latents_part(pack({"latents": array}))]
    return {"sampler": sampler} | request | {"init": {"latents": wanted}}, parts


def _latents_part(data: bytes) -> Part:
    return "latents", ("latents.safetensors", data, BYTES)

"""What the operations give back, read from a finished job and its artifacts."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.client.job import Job
from service.jobs.arrays import unpack

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """The result of a job that succeeded. Arrays have one row an image, in the request's order.

    nfe: (N,) network calls. NaN stands where the service gave no number.
    """

    job: Job
    nfe: NDArray[np.int64] = field(repr=False)

    @classmethod
    @abstractmethod
    def of(cls, job: Job, files: Mapping[str, bytes]) -> Self:
        """Read the result of a job that succeeded, and those of its artifacts that it needs."""

    @staticmethod
    def artifacts(job: Job) -> list[str]:
        """The names of the artifacts that `of` needs."""
        return []


@dataclass(frozen=True, eq=False)
class Generated(Result):
    """Images that were drawn or decoded.

    images: N pictures; none if they were asked for as npy or safetensors.
    array: (N, H, W, C), uint8 pixels; of npy and safetensors float64, in the data's own levels.
        WebP knows no grey: its C is 3 where the model's is 1.
    seeds: of each image; None for those decoded from latents.
    """

    images: tuple[Image.Image, ...] = field(repr=False)
    array: NDArray[Any] = field(repr=False)
    seeds: tuple[int | None, ...]

    @classmethod
    def of(cls, job: Job, files: Mapping[str, bytes]) -> Self:
        """Read it; `files` are the images' own, or the one array of all."""
        entries = _entries(job)
        images: tuple[Image.Image, ...] = ()
        if job.parameters["format"] in ("npy", "safetensors"):
            array = np.moveaxis(
                _read_arrays(files[entries[0]["artifact"]], "images")["images"], 1, -1
            )
        else:
            images = tuple(read_picture(files[entry["artifact"]]) for entry in entries)
            pixels = np.stack([np.asarray(image) for image in images])
            array = pixels if pixels.ndim == 4 else pixels[..., None]
        seeds = tuple(entry["seed"] for entry in entries)
        return cls(job, _counts(entries, "nfe"), images, array, seeds)

    @staticmethod
    def artifacts(job: Job) -> list[str]:
        """The names of the images' files."""
        return list(dict.fromkeys(entry["artifact"] for entry in _entries(job)))


@dataclass(frozen=True, eq=False)
class Inverted(Result):
    """The latents of images, and how well decoding gives the images back.

    latents: (N, C, H, W) float64; companion: the same, for the solver `reversible`, whose latents
        are pairs. file: the file that holds them, which `generate` takes too.
    round_trip_rmse, round_trip_max_error: (N,) of the images decoded again, in units of [-1, 1].
    norm_ratio: (N,) mean square of a latent, 1 for a typical one.
    converged: (N,) False where the solver ran out of calls.
    """

    latents: Floats = field(repr=False)
    companion: Floats | None = field(repr=False)
    round_trip_rmse: Floats
    round_trip_max_error: Floats
    norm_ratio: Floats
    converged: NDArray[np.bool_]
    file: bytes = field(repr=False)

    @classmethod
    def of(cls, job: Job, files: Mapping[str, bytes]) -> Self:
        """Read it; `files` hold the latents."""
        entries = _entries(job)
        file = files[entries[0]["latent"]["artifact"]]
        arrays = _read_arrays(file, "latents")
        return cls(
            job,
            _counts(entries, "nfe"),
            arrays["latents"],
            arrays.get("companion"),
            _numbers(entries, "round_trip_rmse"),
            _numbers(entries, "round_trip_max_error"),
            _numbers(entries, "norm_ratio"),
            _flags(entries),
            file,
        )

    @staticmethod
    def artifacts(job: Job) -> list[str]:
        """The name of the latents' file."""
        return [_entries(job)[0]["latent"]["artifact"]]


@dataclass(frozen=True, eq=False)
class LogLikelihoods(Result):
    """The log-likelihood of images, or a lower bound of it.

    log_likelihood: (N,) nats; bits_per_dim: (N,).
    standard_error: by its source, (N,) nats: `probe` and `dequantization`, or of the method elbo
        `diffusion` and `recon`.
    terms: by name, (N,) nats: `prior` and `volume`, which add up to the log-likelihood, or of the
        method elbo `prior`, `diffusion` and `recon`, which add up to its negative.
    discretization_error: (N,) nats, by which the solver's steps may have moved it; NaN for elbo.
    percentile: (N,) of the held-out images that are at most as unusual, in percent; NaN where the
        checkpoint does not say, and for elbo.
    converged: (N,) False where the solver ran out of calls.
    """

    log_likelihood: Floats
    bits_per_dim: Floats
    standard_error: Mapping[str, Floats]
    terms: Mapping[str, Floats]
    discretization_error: Floats
    percentile: Floats
    converged: NDArray[np.bool_]

    @classmethod
    def of(cls, job: Job, files: Mapping[str, bytes]) -> Self:
        """Read it; it needs no files."""
        entries = _entries(job)
        errors = [entry["standard_error"] for entry in entries]
        terms = [
            entry.get("terms") or {name: entry[name] for name in ("prior", "volume")}
            for entry in entries
        ]
        return cls(
            job,
            _counts(entries, "nfe"),
            _numbers(entries, "log_likelihood"),
            _numbers(entries, "bits_per_dim"),
            {name: _numbers(errors, name) for name in errors[0]},
            {name: _numbers(terms, name) for name in terms[0]},
            _numbers(entries, "discretization_error"),
            _numbers(entries, "percentile"),
            _flags(entries),
        )


RESULTS: dict[str, type[Result]] = {
    "generate": Generated,
    "invert": Inverted,
    "loglik": LogLikelihoods,
}
"""The kind of result, by operation."""


def read_picture(data: bytes) -> Image.Image:
    """The picture of an image file, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _read_arrays(data: bytes, name: str) -> Mapping[str, NDArray[Any]]:
    """The arrays of a safetensors file, or the one of a .npy file under this name."""
    if data.startswith(b"\x93NUMPY"):
        return {name: np.load(io.BytesIO(data), allow_pickle=False)}
    return unpack(data)[0]


def _entries(job: Job) -> list[dict[str, Any]]:
    assert job.result is not None, f"job {job.id} is {job.status} and has no result"
    return list(job.result["images"])


def _numbers(entries: list[dict[str, Any]], name: str) -> Floats:
    return np.array([entry.get(name) for entry in entries], dtype=np.float64)


def _counts(entries: list[dict[str, Any]], name: str) -> NDArray[np.int64]:
    return np.array([entry[name] for entry in entries], dtype=np.int64)


def _flags(entries: list[dict[str, Any]]) -> NDArray[np.bool_]:
    return np.array([entry.get("converged", True) for entry in entries], dtype=np.bool_)

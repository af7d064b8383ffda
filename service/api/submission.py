"""From an upload to a job: everything about a request is checked here, before it is queued."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from service.api.problems import FieldError, did_you_mean, from_pydantic, invalid
from service.api.uploads import Upload
from service.images import ImageError, read_image
from service.jobs.arrays import ArraysError, pack, unpack
from service.jobs.job import Job, new_job_id
from service.jobs.parameters import (
    MAX_SEED,
    OPERATIONS,
    Adaptive,
    GenerateParameters,
    Latents,
    LoglikParameters,
    Parameters,
    PfOde,
)
from service.jobs.store import JobStore
from service.settings import Settings

LATENT_NAMES = ("latents", "latent")


class Card(BaseModel):
    """What a request is checked against, of the card that a worker announced."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    digest: str
    shape: tuple[int, int, int]  # (C, H, W)
    levels: int
    class_names: list[str] | None = None


@dataclass(frozen=True)
class Prepared:
    """A job ready to be stored, and the packed arrays that go with it."""

    job: Job
    inputs: bytes | None


async def prepare(store: JobStore, settings: Settings, operation: str, upload: Upload) -> Prepared:
    """The job that an upload asks for; raises a `Problem` that names what is wrong with it."""
    try:
        parameters = OPERATIONS[operation].model_validate(upload.request)
    except ValidationError as error:
        raise from_pydantic(error, upload.request) from error
    card = await _card(store, parameters.model)
    _check_bounds(parameters, card, settings)
    if isinstance(parameters, GenerateParameters):
        _refuse_images(upload)
        parameters, inputs = await _generate_inputs(store, settings, parameters, card, upload)
    else:
        if upload.latents is not None:
            raise invalid(FieldError("latents", f"{operation} takes images; leave this part out"))
        inputs = await _image_inputs(settings, card, upload)
    job = Job(
        id=new_job_id(),
        operation=operation,
        model=card.name,
        digest=card.digest,
        parameters=_with_seed(parameters).model_dump(mode="json"),
    )
    return Prepared(job, inputs)


async def _card(store: JobStore, name: str) -> Card:
    cards = await store.models()
    if name in cards:
        return Card.model_validate(cards[name])
    known = did_you_mean(name, cards) if cards else "no worker has announced a model yet"
    raise invalid(FieldError("model", f'"{name}" is unknown; {known}', name))


def _check_bounds(parameters: Parameters, card: Card, settings: Settings) -> None:
    """Check what depends on the model's card and on the server's settings."""
    label, classes = parameters.class_label, card.class_names
    if label is not None and not classes:
        detail = f'given {label}, but the model "{card.name}" has no classes; leave it out'
        raise invalid(FieldError("class_label", detail, label))
    if label is not None and classes and label >= len(classes):
        detail = f'given {label}; the model "{card.name}" has classes 0..{len(classes) - 1}'
        raise invalid(FieldError("class_label", detail, label))
    if isinstance(parameters, GenerateParameters):
        _check_count(parameters.count, "seeds" if parameters.seeds else "count", settings)
        _check_steps(parameters.sampler, "sampler", settings)
        if isinstance(parameters.sampler, PfOde):
            _check_steps(parameters.sampler.solver, "sampler.solver", settings)
    else:
        _check_steps(parameters.solver, "solver", settings)


def _check_steps(solver: BaseModel, name: str, settings: Settings) -> None:
    limit = "max_calls" if isinstance(solver, Adaptive) else "steps"
    given = getattr(solver, limit, 0)
    if given > settings.max_steps:
        detail = f"given {given}, at most {settings.max_steps} are allowed; ask for fewer"
        raise invalid(FieldError(f"{name}.{limit}", detail, given))


def _check_count(count: int, name: str, settings: Settings) -> None:
    if count > settings.max_count:
        detail = (
            f"{count} images, at most {settings.max_count} are allowed in one request; split it"
        )
        raise invalid(FieldError(name, detail, count))


def _refuse_images(upload: Upload) -> None:
    if upload.images:
        raise invalid(FieldError("images", "generate takes no images; leave them out"))


async def _image_inputs(settings: Settings, card: Card, upload: Upload) -> bytes:
    """The uploaded images as packed `levels` (N, C, H, W)."""
    if not upload.images:
        detail = "none given; send one part `image` an image, or base64 strings in `images`"
        raise invalid(FieldError("images", detail))
    _check_count(len(upload.images), "images", settings)

    def read_all() -> bytes:
        images = []
        for index, data in enumerate(upload.images):
            try:
                images.append(read_image(data, card.shape, card.levels, settings.max_pixels))
            except ImageError as error:
                raise invalid(FieldError(f"images[{index}]", str(error))) from error
        return pack({"levels": np.stack(images)})

    return await anyio.to_thread.run_sync(read_all)


async def _generate_inputs(
    store: JobStore,
    settings: Settings,
    parameters: GenerateParameters,
    card: Card,
    upload: Upload,
) -> tuple[GenerateParameters, bytes | None]:
    """The latents to start from, copied into the job, and the count that they set."""
    if parameters.init is None:
        if upload.latents is not None:
            detail = 'a part was sent but not asked for; set "init": {"latents": {}}'
            raise invalid(FieldError("latents", detail))
        return parameters, None
    wanted = parameters.init.latents
    data, field = await _latent_bytes(store, wanted, upload.latents)
    rows = await anyio.to_thread.run_sync(_read_latents, data, field, wanted, card)
    count = len(rows)
    _check_count(count, field, settings)
    if "count" in parameters.model_fields_set and parameters.count != count:
        detail = f"given {parameters.count}, but {count} latents are decoded; leave count out"
        raise invalid(FieldError("count", detail, parameters.count))
    return parameters.model_copy(update={"count": count}), pack({"latents": rows})


async def _latent_bytes(store: JobStore, wanted: Latents, part: bytes | None) -> tuple[bytes, str]:
    """The safetensors file that holds the latents, and the field that it came from."""
    if wanted.job is None:
        if part is None:
            detail = "neither a job is named nor a part `latents` sent; do one of them"
            raise invalid(FieldError("init.latents", detail))
        return part, "latents"
    if part is not None:
        detail = "a part `latents` was sent as well; leave one of them out"
        raise invalid(FieldError("init.latents.job", detail, wanted.job))
    job = await store.get(wanted.job)
    if job is None:
        detail = f"no job {wanted.job}; it never was, or it has expired"
        raise invalid(FieldError("init.latents.job", detail, wanted.job))
    artifact = await store.artifact(wanted.job, wanted.name)
    if artifact is None:
        known = did_you_mean(wanted.name, job.artifacts) if job.artifacts else "it has none"
        detail = f'the job, which is {job.status}, has no artifact "{wanted.name}"; {known}'
        raise invalid(FieldError("init.latents.name", detail, wanted.name))
    return artifact[1], "init.latents"


def _read_latents(data: bytes, field: str, wanted: Latents, card: Card) -> NDArray[np.float64]:
    """The chosen rows (N, C, H, W) of a latents file made by or for the model of `card`."""
    try:
        arrays, metadata = unpack(data)
    except ArraysError as error:
        raise invalid(FieldError(field, str(error))) from error
    name = next((name for name in LATENT_NAMES if name in arrays), None)
    if name is None:
        found = ", ".join(sorted(arrays)) or "no array"
        raise invalid(FieldError(field, f'needs an array "latents", given {found}'))
    latents = arrays[name]
    if latents.dtype.kind != "f" or latents.shape[1:] != card.shape or latents.ndim != 4:
        shape = ", ".join(map(str, card.shape))
        detail = (
            f"{latents.dtype} of shape {latents.shape}; "
            f'the model "{card.name}" takes floats of shape (N, {shape})'
        )
        raise invalid(FieldError(field, detail))
    if metadata.get("digest", card.digest) != card.digest:
        detail = (
            f"they are of the checkpoint {metadata['digest']}, but the model "
            f'"{card.name}" is {card.digest} now; encode the images again'
        )
        raise invalid(FieldError(field, detail))
    rows = _select(latents, wanted.index).astype(np.float64)
    if not len(rows) or not np.isfinite(rows).all():
        raise invalid(FieldError(field, "needs at least one latent, all of finite numbers"))
    return rows


def _select(latents: NDArray[Any], index: Sequence[int] | None) -> NDArray[Any]:
    if index is None:
        return latents
    for given in index:
        if given >= len(latents):
            detail = f"given {given}; there are latents 0..{len(latents) - 1}"
            raise invalid(FieldError("init.latents.index", detail, given))
    return latents[list(index)]


def _with_seed(parameters: Parameters) -> Parameters:
    """The parameters with a seed drawn where one is needed and none was given."""
    match parameters:
        case GenerateParameters(seed=None, seeds=None) | LoglikParameters(seed=None):
            return parameters.model_copy(update={"seed": secrets.randbelow(MAX_SEED + 1)})
        case _:
            return parameters

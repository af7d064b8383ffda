"""From an upload to a job: everything about a request is checked here, before it is queued."""

import secrets
from dataclasses import dataclass
from typing import get_args

import anyio
import anyio.to_thread
import numpy as np
from pydantic import ValidationError

from service.api.cards import Card, Times, why_none
from service.api.dependencies import Services
from service.api.latents import latent_bytes, read_latents
from service.api.problems import FieldError, from_pydantic, invalid
from service.api.uploads import Upload
from service.api.webhooks import ForbiddenError, check_url
from service.images import PICTURE_CHANNELS, ImageError, declared_pixels, read_image
from service.jobs.arrays import pack
from service.jobs.job import Job, new_job_id
from service.jobs.parameters import (
    MAX_SEED,
    OPERATIONS,
    Bound,
    GenerateParameters,
    InvertParameters,
    LoglikParameters,
    Parameters,
)
from service.jobs.samplers import (
    SELECTED_FROM,
    Adaptive,
    FixedSolver,
    Langevin,
    PfOde,
    Reversible,
    Sampler,
    Selection,
)
from service.jobs.store import JobStore
from service.settings import Settings

DECODERS = anyio.CapacityLimiter(2)
"""Requests whose images are decoded at once: each takes a core, and room for one large picture."""

SCALED = 16
"""Times the largest picture's pixels that the pictures of one request may declare together."""


@dataclass(frozen=True)
class Prepared:
    """A job ready to be stored, and the packed arrays that go with it."""

    job: Job
    inputs: bytes | None


async def prepare(services: Services, owner: str, operation: str, upload: Upload) -> Prepared:
    """The job that an upload asks for; raises a `Problem` that names what is wrong with it."""
    store, settings = services.store, services.settings
    try:
        parameters = OPERATIONS[operation].model_validate(upload.request)
    except ValidationError as error:
        raise from_pydantic(error, upload.request) from error
    card = await _card(services, parameters.model)
    _check_bounds(parameters, card, settings)
    if parameters.webhook is not None:
        try:
            check_url(parameters.webhook, settings)
        except ForbiddenError as error:
            raise invalid(FieldError("webhook", str(error), parameters.webhook)) from error
    if isinstance(parameters, GenerateParameters):
        _refuse_images(upload)
        parameters, inputs = await _generate_inputs(
            store, settings, owner, parameters, card, upload
        )
    else:
        if upload.latents is not None:
            raise invalid(FieldError("latents", f"{operation} takes images; leave this part out"))
        inputs = await _image_inputs(settings, card, upload, parameters)
    job = Job(
        id=new_job_id(),
        operation=operation,
        model=card.name,
        digest=card.digest,
        parameters=_with_seed(parameters).model_dump(mode="json"),
        priority=parameters.priority,
        rows=parameters.rows(len(upload.images)),
        calls=parameters.expected_calls,
        owner=owner,
        webhook=parameters.webhook,
    )
    return Prepared(job, inputs)


async def _card(services: Services, name: str) -> Card:
    cards = await services.cards()
    if name not in cards:
        cards = await services.cards.now()
    if name in cards:
        return cards[name]
    why = await why_none(services.store, name, cards)
    raise invalid(FieldError("model", f'"{name}" is unknown; {why}', name))


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
        _check_calls(parameters.sampler, "sampler", settings)
        _check_time(parameters.sampler, card.process)
        _check_format(parameters, card)
        _check_start(parameters)
    else:
        _check_calls(parameters.solver, "solver", settings)
        if isinstance(parameters, LoglikParameters):
            _check_calls(parameters.bound, "bound", settings)


def _check_calls(
    asked: Sampler | FixedSolver | Adaptive | Bound, field: str, settings: Settings
) -> None:
    if isinstance(asked, PfOde):
        return _check_calls(asked.solver, f"{field}.solver", settings)
    if asked.calls > settings.max_steps:
        name = {Adaptive: "max_calls", Bound: "draws"}.get(type(asked), "steps")
        detail = (
            f"{asked.calls} network calls an image, at most {settings.max_steps} are allowed; "
            "ask for fewer"
        )
        raise invalid(FieldError(f"{field}.{name}", detail, getattr(asked, name)))
    grid = getattr(asked, "grid", None)
    if grid in get_args(Selection) and asked.calls > SELECTED_FROM:
        detail = f"the grid {grid} selects from {SELECTED_FROM} times; ask for at most as many"
        raise invalid(FieldError(f"{field}.steps", detail, asked.calls))
    return None


def _check_time(sampler: Sampler, times: Times) -> None:
    t = sampler.t if isinstance(sampler, Langevin) else None
    if t is not None and not times.t_min <= t <= times.t_max:
        detail = f"given {t}; the model's times are {times.t_min:g}..{times.t_max:g}"
        raise invalid(FieldError("sampler.t", detail, t))


def _check_format(parameters: GenerateParameters, card: Card) -> None:
    channels = card.shape[0]
    if channels in PICTURE_CHANNELS:
        return
    if parameters.format in ("png", "webp"):
        kind = parameters.format
        detail = f'images of {channels} channels have no {kind}; ask for "safetensors" or "npy"'
        raise invalid(FieldError("format", detail, kind))
    if parameters.grid:
        detail = f"images of {channels} channels have no picture; leave it out"
        raise invalid(FieldError("grid", detail, True))


def _check_start(parameters: GenerateParameters) -> None:
    solver = parameters.sampler.solver if isinstance(parameters.sampler, PfOde) else None
    if parameters.init is None and isinstance(solver, Reversible):
        detail = (
            "reversible decodes the latents that it encoded and draws nothing itself; "
            "set init.latents to the job of an /invert by it, or choose another solver"
        )
        raise invalid(FieldError("sampler.solver", detail, solver.name))


def _check_count(count: int, name: str, settings: Settings) -> None:
    if count > settings.max_count:
        detail = (
            f"{count} images, at most {settings.max_count} are allowed in one request; split it"
        )
        raise invalid(FieldError(name, detail, count))


def _refuse_images(upload: Upload) -> None:
    if upload.images:
        raise invalid(FieldError("images", "generate takes no images; leave them out"))


async def _image_inputs(
    settings: Settings, card: Card, upload: Upload, parameters: InvertParameters | LoglikParameters
) -> bytes:
    """The uploaded images as packed `levels` (N, C, H, W); 422 where they make too many rows."""
    if not upload.images:
        detail = "none given; send one part `image` an image, or base64 strings in `images`"
        raise invalid(FieldError("images", detail))
    _check_count(parameters.rows(len(upload.images)), "images", settings)

    def read_all() -> bytes:
        if parameters.fit != "exact":
            _check_pixels(upload.images, settings)
        shape, levels, most = card.shape, card.levels, settings.max_pixels
        images = []
        for index, data in enumerate(upload.images):
            try:
                images.append(read_image(data, shape, levels, most, parameters.fit))
            except ImageError as error:
                raise invalid(FieldError(f"images[{index}]", str(error))) from error
        return pack({"levels": np.stack(images)})

    return await anyio.to_thread.run_sync(read_all, limiter=DECODERS)


def _check_pixels(images: list[bytes], settings: Settings) -> None:
    """Bound the work of one request: pictures of a model's own size are small, others need not."""
    total, most = sum(map(declared_pixels, images)), SCALED * settings.max_pixels
    if total > most:
        detail = f"they declare {total} pixels together; at most {most} are scaled in one request"
        raise invalid(FieldError("images", f"{detail}; split it, or send them smaller"))


async def _generate_inputs(
    store: JobStore,
    settings: Settings,
    owner: str,
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
    if wanted.index is not None:
        _check_count(len(wanted.index), "init.latents.index", settings)
    data, field = await latent_bytes(store, owner, wanted, upload.latents)
    solver = parameters.sampler.solver if isinstance(parameters.sampler, PfOde) else None
    arrays = await anyio.to_thread.run_sync(read_latents, data, field, wanted, card, solver)
    count = len(arrays["latents"])
    _check_count(count, field, settings)
    if "count" in parameters.model_fields_set and parameters.count != count:
        detail = f"given {parameters.count}, but {count} latents are decoded; leave count out"
        raise invalid(FieldError("count", detail, parameters.count))
    return parameters.model_copy(update={"count": count}), pack(arrays)


def _with_seed(parameters: Parameters) -> Parameters:
    """The parameters with a seed drawn where one is needed and none was given."""
    match parameters:
        case GenerateParameters(seed=None, seeds=None) | LoglikParameters(seed=None):
            return parameters.model_copy(update={"seed": secrets.randbelow(MAX_SEED + 1)})
        case _:
            return parameters

"""Latents that come back in: which file holds them, and what of it a job starts from."""

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from service.api.cards import Card
from service.api.problems import FieldError, did_you_mean, invalid
from service.jobs.arrays import Arrays, ArraysError, unpack
from service.jobs.parameters import Latents
from service.jobs.samplers import Adaptive, FixedSolver, Reversible
from service.jobs.store import JobStore
from service.npy import NpyError, as_float64, is_npy, read_npy


async def latent_bytes(
    store: JobStore, owner: str, wanted: Latents, part: bytes | None
) -> tuple[bytes, str]:
    """The file that holds the latents, and the field that it came from."""
    if wanted.job is None:
        if part is None:
            detail = "neither a job is named nor a part `latents` sent; do one of them"
            raise invalid(FieldError("init.latents", detail))
        return part, "latents"
    if part is not None:
        detail = "a part `latents` was sent as well; leave one of them out"
        raise invalid(FieldError("init.latents.job", detail, wanted.job))
    job = await store.get(wanted.job)
    if job is None or job.owner != owner:
        detail = f"no job {wanted.job}; it never was, or it has expired"
        raise invalid(FieldError("init.latents.job", detail, wanted.job))
    artifact = await store.artifact(wanted.job, wanted.name)
    if artifact is None:
        known = did_you_mean(wanted.name, job.artifacts) if job.artifacts else "it has none"
        detail = f'the job, which is {job.status}, has no artifact "{wanted.name}"; {known}'
        raise invalid(FieldError("init.latents.name", detail, wanted.name))
    data = await anyio.to_thread.run_sync(artifact[1].read)
    return data, "init.latents"


def read_latents(
    data: bytes,
    field: str,
    wanted: Latents,
    card: Card,
    solver: FixedSolver | Adaptive | None,
) -> Arrays:
    """The chosen rows (N, C, H, W) of a latents file made by or for the model of `card`.

    `latents`, and `companion` for a solver whose latents are pairs. data: a safetensors file, or a
    .npy array, which is the latents alone and says nothing of where they are from.
    """
    try:
        arrays, metadata = ({"latents": read_npy(data)}, {}) if is_npy(data) else unpack(data)
    except (ArraysError, NpyError) as error:
        raise invalid(FieldError(field, str(error))) from error
    if metadata.get("digest", card.digest) != card.digest:
        detail = (
            f"they are of the checkpoint {metadata['digest']}, but the model "
            f'"{card.name}" is {card.digest} now; encode the images again'
        )
        raise invalid(FieldError(field, detail))
    names = ["latents"]
    if isinstance(solver, Reversible):
        if metadata.get("solver") != solver.model_dump_json():
            detail = (
                f"the reversible solver undoes its own encoding only; these were encoded by "
                f"{metadata.get('solver', 'something that left no word')}; decode them by another "
                "solver, or encode the images again by this one"
            )
            raise invalid(FieldError("sampler.solver", detail, solver.model_dump()))
        names.append("companion")
    return {name: _rows(arrays, name, field, wanted, card) for name in names}


def _rows(
    arrays: Arrays, name: str, field: str, wanted: Latents, card: Card
) -> NDArray[np.float64]:
    """The chosen rows of one array, checked."""
    if name not in arrays:
        found = ", ".join(sorted(arrays)) or "no array"
        raise invalid(FieldError(field, f'needs an array "{name}", given {found}'))
    latents = arrays[name]
    if latents.dtype.kind != "f" or latents.shape[1:] != card.shape or latents.ndim != 4:
        shape = ", ".join(map(str, card.shape))
        detail = (
            f"{name}: {latents.dtype} of shape {latents.shape}; "
            f'the model "{card.name}" takes floats of shape (N, {shape})'
        )
        raise invalid(FieldError(field, detail))
    rows = as_float64(_select(latents, wanted.index))
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

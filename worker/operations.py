"""From a job's parameters to an operation of the mathematics, and from its answer to a result.

Each operation here is a generator like those in `model`: it yields courses and is sent what came
of them, so the engine can advance it together with any other. It returns an `Outcome`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from model import elbo, likelihood, pf_ode
from model.data import DataSpec
from model.follow import Clip, replay
from model.grids import GRIDS
from model.noise import Stream, image_seeds, normal
from model.plan import Plan, from_prior
from model.process import Process
from model.quantiles import Quantiles, held_out_quantiles
from model.query import Condition, Operation
from model.samplers import SAMPLERS
from service.jobs import parameters as p
from service.jobs.arrays import unpack
from service.jobs.samplers import Adaptive, Ddim, Ddpm, FixedSolver, Langevin, PfOde, TableSampler
from worker import artifacts
from worker.artifacts import Artifact
from worker.shelf import ServedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job ends with: its result document (JSON values) and its artifacts."""

    result: dict[str, Any]
    artifacts: list[Artifact] = field(default_factory=list)


def legs(job: p.Parameters) -> int:
    """In how many courses, one after another, each of which knows only its own progress, it goes.

    The single calls of a bound know that of the whole: it is one leg.
    """
    return 2 if isinstance(job, p.InvertParameters) else 1


class NotFiniteError(ArithmeticError):
    """The model's answer is not a number; says for which images."""


def start(served: ServedModel, job: p.Parameters, inputs: bytes | None) -> Operation[Outcome]:
    """The operation of a job's parameters; ``inputs`` are its packed arrays."""
    arrays = unpack(inputs)[0] if inputs is not None else {}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    match job:
        case p.GenerateParameters():
            return generate(served, job, tensors.get("latents"), tensors.get("companion"))
        case p.InvertParameters():
            return invert(served, job, tensors["levels"])
        case p.LoglikParameters(method="elbo"):
            return bound(served, job, tensors["levels"])
        case p.LoglikParameters():
            return loglik(served, job, tensors["levels"])


def generate(
    served: ServedModel,
    job: p.GenerateParameters,
    latents: Tensor | None,
    companion: Tensor | None,
) -> Operation[Outcome]:
    """Images from noise by any sampler, or from latents by the probability-flow ODE."""
    spec, process = _data_and_process(served)
    count = job.count if latents is None else len(latents)
    seeds = list(job.seeds) if job.seeds is not None else image_seeds(job.seed or 0, count)
    keys = torch.tensor(seeds, dtype=torch.int64)
    condition = Condition.same(count, job.class_label, job.guidance)
    converged: Tensor | None = None
    if isinstance(job.sampler, PfOde):
        latent = normal(keys, Stream.PRIOR, 0, spec.shape) if latents is None else latents
        solver = _solver(job.sampler.solver)
        flowed = yield from pf_ode.decode(process, latent, condition, solver, companion)
        x, nfe, converged = flowed.end, flowed.nfe, flowed.converged
    else:
        plan = _plan(process, job.sampler)
        start = from_prior(plan, keys, spec.shape)
        x = (yield from replay(plan, start, keys, condition, clip=_clip(spec, job.sampler))).x
        nfe = torch.full((count,), plan.calls)
    _require_finite(x)
    drawn = seeds if latents is None else None
    images: list[dict[str, Any]] = [
        {
            "index": i,
            "seed": None if drawn is None else drawn[i],
            "nfe": int(nfe[i]),
            "artifact": artifacts.image_name(job, i),
        }
        for i in range(count)
    ]
    if converged is not None:
        for image, done in zip(images, converged.tolist(), strict=True):
            image["converged"] = done
    files = artifacts.of_images(served, job, x, drawn)
    grid = artifacts.grid_of(served, job, x)
    result = {"images": images, "grid": None if grid is None else grid.name}
    return Outcome(result=result, artifacts=files if grid is None else [*files, grid])


def invert(served: ServedModel, job: p.InvertParameters, levels: Tensor) -> Operation[Outcome]:
    """The latent of each image, and how well decoding it with the same solver gives it back."""
    spec, process = _data_and_process(served)
    x = spec.to_model(levels)
    condition = Condition.same(len(x), job.class_label, job.guidance)
    solver = _solver(job.solver)
    encoded = yield from pf_ode.encode(process, x, condition, solver)
    _require_finite(encoded.end)
    decoded = yield from pf_ode.decode(process, encoded.end, condition, solver, encoded.companion)
    # In [−1, 1] units whatever the model's range.
    error = (decoded.end - x).abs().flatten(1) * (2.0 / (spec.high - spec.low))
    file = artifacts.of_latents(served, job, encoded.end, encoded.companion)
    images = [
        {
            "index": i,
            "latent": {"artifact": file.name, "index": i},
            "round_trip_rmse": _number(error[i].square().mean().sqrt()),
            "round_trip_max_error": _number(error[i].max()),
            "norm_ratio": _number(encoded.end[i].square().mean()),
            "nfe": int(encoded.nfe[i] + decoded.nfe[i]),
            "converged": bool(encoded.converged[i] & decoded.converged[i]),
        }
        for i in range(len(x))
    ]
    return Outcome(result={"images": images}, artifacts=[file])


def loglik(served: ServedModel, job: p.LoglikParameters, levels: Tensor) -> Operation[Outcome]:
    """log p of each image in nats and bits/dim, averaged over the dequantisation's samples."""
    spec, process = _data_and_process(served)
    count = len(levels)
    samples = 1 if job.dequantization is None else job.dequantization.samples
    # One row for every (image, sample). An image's samples share its probes, so that what differs
    # between them is the dequantisation alone.
    image_keys = image_seeds(job.seed or 0, count)
    sample_keys = torch.tensor([image_seeds(key, samples) for key in image_keys]).reshape(-1)
    rows = levels.repeat_interleave(samples, dim=0)
    u = 0.5 if job.dequantization is None else likelihood.dequantize(rows, sample_keys)
    solved = yield from likelihood.log_likelihood(
        process,
        spec.to_model(rows, u),
        Condition.same(len(rows), job.class_label),
        pf_ode.Adaptive(tolerance=job.solver.tolerance, max_calls=job.solver.max_calls),
        _divergence(job.divergence),
        torch.tensor(image_keys).repeat_interleave(samples),
    )
    _require_finite(solved.log_likelihood)
    by_image = {
        name: getattr(solved, name).reshape(count, samples)
        for name in (
            "log_likelihood",
            "prior",
            "volume",
            "probe_error",
            "discretization_error",
            "nfe",
            "converged",
        )
    }
    # An integral that was not finished is no likelihood.
    finished = by_image["converged"].all(1)
    nan = torch.full((), math.nan, dtype=torch.float64)
    for name in ("log_likelihood", "prior", "volume", "probe_error", "discretization_error"):
        by_image[name] = torch.where(finished[:, None], by_image[name], nan)
    mean = by_image["log_likelihood"].mean(1)
    spread = by_image["log_likelihood"].std(1) / math.sqrt(samples) if samples > 1 else None
    bits = spec.bits_per_dim(mean)
    held_out = _held_out(served)
    images = [
        {
            "index": i,
            "log_likelihood": _number(mean[i]),
            "bits_per_dim": _number(bits[i]),
            "percentile": held_out.percentile(float(bits[i])) if held_out and finished[i] else None,
            "standard_error": {
                "probe": _number(by_image["probe_error"][i].mean()),
                "dequantization": None if spread is None else _number(spread[i]),
            },
            "discretization_error": _number(by_image["discretization_error"][i].mean()),
            "prior": _number(by_image["prior"][i].mean()),
            "volume": _number(by_image["volume"][i].mean()),
            "nfe": int(by_image["nfe"][i].sum()),
            "t_min": process.t_min,
            "converged": bool(finished[i]),
        }
        for i in range(count)
    ]
    return Outcome(result={"images": images})


def bound(served: ServedModel, job: p.LoglikParameters, levels: Tensor) -> Operation[Outcome]:
    """The evidence lower bound on each image's log probability, term by term, in nats."""
    spec, process = _data_and_process(served)
    found = yield from elbo.elbo(
        process,
        spec,
        levels,
        Condition.same(len(levels), job.class_label),
        torch.tensor(image_seeds(job.seed or 0, len(levels))),
        **job.bound.model_dump(),
    )
    _require_finite(found.total)
    images = [
        {
            "index": i,
            "log_likelihood": _number(-found.total[i]),
            "bits_per_dim": _number(found.total[i] / (spec.dimensions * math.log(2.0))),
            "terms": {
                "prior": _number(found.prior[i]),
                "diffusion": _number(found.diffusion[i]),
                "recon": _number(found.recon[i]),
            },
            "standard_error": {
                "diffusion": _number(found.diffusion_error[i]),
                "recon": _number(found.recon_error[i]),
            },
            "nfe": found.nfe,
            "t_min": process.t_min,
        }
        for i in range(len(levels))
    ]
    return Outcome(result={"images": images})


def _data_and_process(served: ServedModel) -> tuple[DataSpec, Process]:
    description = served.checkpoint.description
    return description.data, description.process


def _held_out(served: ServedModel) -> Quantiles | None:
    """Bits per dimension of held-out images, None where the checkpoint does not know them."""
    try:
        return held_out_quantiles(served.checkpoint.description.training, "bits_per_dim")
    except ValueError as error:
        log.warning("model %s: %s; its percentiles are null", served.name, error)
        return None


def _solver(solver: FixedSolver | Adaptive) -> pf_ode.Solver:
    if isinstance(solver, Adaptive):
        return pf_ode.Adaptive(tolerance=solver.tolerance, max_calls=solver.max_calls)
    return pf_ode.FixedGrid(name=solver.name, steps=solver.steps, grid=solver.grid)


@lru_cache(maxsize=128)
def _plan(process: Process, sampler: TableSampler) -> Plan:
    """The table of a sampler: its own options are those of its function in `model.samplers`."""
    options = sampler.model_dump(exclude={"name", "steps", "grid", "clip", "t"})
    if isinstance(sampler, Langevin):
        level = process.t_min if sampler.t is None else sampler.t
        times = torch.full((sampler.steps,), level, dtype=torch.float64)
    else:
        times = GRIDS[sampler.grid](process, sampler.steps)
    return SAMPLERS[sampler.name](process, times, **options)


def _clip(spec: DataSpec, sampler: TableSampler) -> Clip | None:
    wanted = isinstance(sampler, Ddpm | Ddim) and sampler.clip
    return Clip(low=spec.low, high=spec.high) if wanted else None


def _divergence(divergence: p.Hutchinson | p.Exact) -> likelihood.Divergence:
    if isinstance(divergence, p.Exact):
        return likelihood.Exact()
    return likelihood.Hutchinson(probes=divergence.probes, distribution=divergence.distribution)


def _require_finite(values: Tensor) -> None:
    finite = torch.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        wrong = (~finite).nonzero().squeeze(1).tolist()
        raise NotFiniteError(
            f"the model's answer is not finite for images {wrong}; "
            "the checkpoint may be damaged, guidance too strong, or latents far too large"
        )


def _number(value: Tensor) -> float | None:
    """A JSON number, None where there is none (the error of a single probe)."""
    number = float(value)
    return number if math.isfinite(number) else None

"""The parameters of the three operations: names, defaults and static ranges, in one place.

API and worker read the same models. What depends on a model's card or on the server's settings
(classes, shapes, the largest count) is checked by the API.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

MAX_SEED = 2**53 - 1  # what a JSON number carries exactly everywhere

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Euler(_Parameters):
    """The probability-flow ODE by Euler's method on a fixed grid: one call a step."""

    name: Literal["euler"] = "euler"
    steps: int = Field(default=100, ge=1)


class Heun(_Parameters):
    """The probability-flow ODE by Heun's method on a fixed grid: two calls a step."""

    name: Literal["heun"] = "heun"
    steps: int = Field(default=50, ge=1)


class Adaptive(_Parameters):
    """The probability-flow ODE by an embedded Runge–Kutta pair, step size by image.

    The default is that of encoding and decoding alike: it also closes the round trip of images
    between two modes, where a small error in the latent grows a hundredfold on the way back.
    """

    name: Literal["adaptive"] = "adaptive"
    tolerance: float = Field(default=1e-6, ge=1e-8, le=1e-1)
    max_calls: int = Field(default=2000, ge=1)


Solver = Annotated[Euler | Heun | Adaptive, Field(discriminator="name")]


class Ddpm(_Parameters):
    """Ancestral sampling."""

    name: Literal["ddpm"] = "ddpm"
    steps: int = Field(default=250, ge=1)


class Ddim(_Parameters):
    """DDIM; `eta` 0 is deterministic, 1 has the ancestral variance."""

    name: Literal["ddim"] = "ddim"
    steps: int = Field(default=50, ge=1)
    eta: float = Field(default=0.0, ge=0, le=1)


class PfOde(_Parameters):
    """The probability-flow ODE, deterministic; also decodes latents."""

    name: Literal["pf_ode"] = "pf_ode"
    solver: Solver = Adaptive()


Sampler = Annotated[Ddpm | Ddim | PfOde, Field(discriminator="name")]


class Stream(_Parameters):
    """Previews: every how many network calls, and of what."""

    every: int = Field(default=10, ge=1)
    what: Literal["x0", "xt"] = "x0"


class Hutchinson(_Parameters):
    """The divergence by fixed Rademacher probes."""

    kind: Literal["hutchinson"] = "hutchinson"
    probes: int = Field(default=8, ge=1, le=64)


class Exact(_Parameters):
    """The exact divergence: as many vector–Jacobian products as an image has values."""

    kind: Literal["exact"] = "exact"


Divergence = Annotated[Hutchinson | Exact, Field(discriminator="kind")]


class Dequantization(_Parameters):
    """Uniform noise within each grey level, averaged over `samples` draws."""

    kind: Literal["uniform"] = "uniform"
    samples: int = Field(default=1, ge=1, le=64)


class Latents(_Parameters):
    """Where latents come from: a job's artifact, or the multipart part `latents` (job null)."""

    job: str | None = None
    name: str = "latents.safetensors"
    index: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)


class Init(_Parameters):
    """What sampling starts from instead of noise."""

    latents: Latents


class _Conditioned(_Parameters):
    model: str = Field(min_length=1, max_length=200)
    class_label: int | None = Field(default=None, ge=0)
    guidance: float = Field(default=1.0, ge=0, le=20)

    @field_validator("guidance")
    @classmethod
    def _guidance_needs_a_class(cls, guidance: float, info: ValidationInfo) -> float:
        if guidance != 1 and info.data.get("class_label", 0) is None:
            raise ValueError("it needs a class_label to guide towards; give one, or leave it at 1")
        return guidance


class GenerateParameters(_Conditioned):
    """`POST /generate`: draw images, or decode latents."""

    count: int = Field(default=1, ge=1)
    seed: Seed | None = None
    seeds: list[Seed] | None = Field(default=None, min_length=1)
    sampler: Sampler = Ddpm()
    init: Init | None = None
    stream: Stream | None = None
    format: Literal["png", "webp", "npy"] = "png"

    @model_validator(mode="before")
    @classmethod
    def _seeds_set_the_count(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("seeds"), list):
            return {"count": len(given["seeds"]) or 1} | given
        return given

    @field_validator("seeds")
    @classmethod
    def _seeds_agree(cls, seeds: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if seeds is not None and info.data.get("seed") is not None:
            raise ValueError("seed and seeds exclude each other; give one of them")
        count = info.data.get("count")
        if seeds is not None and count not in (None, len(seeds)):
            raise ValueError(
                f"{len(seeds)} entries, but count is {count}; make them equal or leave count out"
            )
        return seeds

    @field_validator("init")
    @classmethod
    def _latents_need_an_ode(cls, init: Init | None, info: ValidationInfo) -> Init | None:
        sampler = info.data.get("sampler")
        if init is not None and sampler is not None and not isinstance(sampler, PfOde):
            raise ValueError(
                f"latents are decoded by the sampler pf_ode, not by {sampler.name}; "
                'set "sampler": {"name": "pf_ode"}'
            )
        return init


class InvertParameters(_Conditioned):
    """`POST /invert`: the latent code of each image."""

    solver: Solver = Adaptive()
    stream: Stream | None = None


class LoglikParameters(_Parameters):
    """`POST /loglik`: the log-likelihood of each image."""

    model: str = Field(min_length=1, max_length=200)
    method: Literal["pf_ode"] = "pf_ode"
    solver: Adaptive = Adaptive(tolerance=1e-3)
    divergence: Divergence = Hutchinson()
    dequantization: Dequantization | None = Dequantization()
    class_label: int | None = Field(default=None, ge=0)
    seed: Seed | None = None


Parameters = GenerateParameters | InvertParameters | LoglikParameters

OPERATIONS: dict[str, type[Parameters]] = {
    "generate": GenerateParameters,
    "invert": InvertParameters,
    "loglik": LoglikParameters,
}
"""The operations by the name that a job and a URL carry."""

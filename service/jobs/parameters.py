"""The parameters of the three operations: names, defaults and static ranges, in one place.

API and worker read the same models. What depends on a model's card or on the server's settings
(classes, shapes, the largest count) is checked by the API.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from service.jobs.samplers import Adaptive, Costed, Ddpm, PfOde, Reversible, Sampler, Solver, Strict

MAX_SEED = 2**53 - 1  # what a JSON number carries exactly everywhere

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

Priority = Literal["interactive", "batch"]
"""What a job is for: someone waits for it, or it may take its time."""

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""All priorities, the most urgent first."""

Fit = Literal["exact", "resize", "crop"]
"""What becomes of an uploaded picture that has another size than the model's."""


class Stream(Strict):
    """Previews: every how many network calls, and of what."""

    every: int = Field(default=10, ge=1)
    what: Literal["x0", "xt"] = "x0"


class Hutchinson(Strict):
    """The divergence by probes that are fixed for the whole solve."""

    kind: Literal["hutchinson"] = "hutchinson"
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    probes: int = Field(default=8, ge=1, le=64)


class Exact(Strict):
    """The exact divergence: as many vector–Jacobian products as an image has values."""

    kind: Literal["exact"] = "exact"


Divergence = Annotated[Hutchinson | Exact, Field(discriminator="kind")]


class Dequantization(Strict):
    """Uniform noise within each grey level, averaged over `samples` draws."""

    kind: Literal["uniform"] = "uniform"
    samples: int = Field(default=1, ge=1, le=64)


class Latents(Strict):
    """Where latents come from: a job's artifact, or the multipart part `latents` (job null).

    Either is a safetensors file with an array `latents`, or a .npy array; index chooses of them.
    """

    job: str | None = None
    name: str = "latents.safetensors"
    index: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1
    )


class Init(Strict):
    """What sampling starts from instead of noise."""

    latents: Latents


class _Operation(Strict):
    model: str = Field(min_length=1, max_length=200)
    priority: Priority = Field(
        default="interactive",
        description="Jobs that someone waits for start before those that may take their time.",
    )
    class_label: int | None = Field(default=None, ge=0)
    webhook: str | None = Field(
        default=None, max_length=2000, description="URL that is told, signed, of the job's end."
    )

    def rows(self, images: int) -> int:
        """Rows of a network's batch that the job occupies, `images` of them uploaded."""
        return images

    @property
    @abstractmethod
    def expected_calls(self) -> int:
        """Network calls of one row, about, from the job's start to its end."""


class _Conditioned(_Operation):
    guidance: float = Field(default=1.0, ge=0, le=20)

    @field_validator("guidance")
    @classmethod
    def _guidance_needs_a_class(cls, guidance: float, info: ValidationInfo) -> float:
        if guidance != 1 and info.data.get("class_label", 0) is None:
            raise ValueError("it needs a class_label to guide towards; give one, or leave it at 1")
        return guidance


class _OfImages(_Operation):
    fit: Fit = Field(
        default="exact",
        description="Pictures of another size than the model's: `exact` refuses them, `resize` "
        "scales them to it, `crop` scales until the shorter side fits and cuts the longer one "
        "evenly at both ends. Arrays always need the model's own shape.",
    )


class GenerateParameters(_Conditioned):
    """`POST /generate`: draw images, or decode latents."""

    count: int = Field(default=1, ge=1)
    seed: Seed | None = None
    seeds: Annotated[list[Seed], Field(fail_fast=True)] | None = Field(default=None, min_length=1)
    sampler: Sampler = Ddpm()
    init: Init | None = None
    stream: Stream | None = None
    format: Literal["png", "webp", "npy", "safetensors"] = Field(
        default="png",
        description="Of the results. `png`, `webp` (lossless): a file an image, 8 bits a channel. "
        "`npy`: images.npy, float64 (N, C, H, W) in the data's own levels, not rounded. "
        "`safetensors`: the same array as `images`, with model, digest and seeds as metadata.",
    )
    grid: bool | None = Field(
        default=None,
        description="Adds all images in one picture, grid.png (grid.webp for the format `webp`); "
        "null: if the images are pictures themselves.",
    )

    def rows(self, images: int = 0) -> int:
        """Rows that the job occupies: one an image that is drawn or decoded."""
        return self.count

    @property
    def expected_calls(self) -> int:
        """Network calls of one row, about."""
        return self.sampler.expected_calls

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


class InvertParameters(_Conditioned, _OfImages):
    """`POST /invert`: the latent code of each image."""

    solver: Solver = Adaptive()
    stream: Stream | None = None
    format: Literal["safetensors", "npy"] = Field(
        default="safetensors",
        description="Of the latents, float64 (N, C, H, W): latents.safetensors, with how they were "
        "encoded as metadata, or latents.npy, without.",
    )

    @field_validator("format")
    @classmethod
    def _pairs_need_safetensors(cls, kind: str, info: ValidationInfo) -> str:
        if kind == "npy" and isinstance(info.data.get("solver"), Reversible):
            raise ValueError(
                "the reversible solver encodes an image as a pair, which a .npy file cannot hold; "
                'ask for "safetensors"'
            )
        return kind

    @property
    def expected_calls(self) -> int:
        """Network calls of one row, about: each image is encoded, and decoded for the check."""
        return 2 * self.solver.expected_calls


DRAWS = 64


def _draws(given: Mapping[str, Any]) -> int:
    return max(2, min(DRAWS, given.get("steps") or DRAWS))


class Bound(Costed):
    """How the evidence lower bound is estimated: of `steps` steps, null for continuous time.

    `draws`: 64 if left out, or as many as there are steps.
    """

    steps: int | None = Field(default=None, ge=1)
    draws: int = Field(default_factory=_draws, ge=2)
    recon_draws: int = Field(default=8, ge=2)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return self.draws + self.recon_draws

    @model_validator(mode="after")
    def _draws_fit_the_steps(self) -> "Bound":
        if self.steps is not None and self.draws > self.steps:
            raise ValueError(
                f"draws is {self.draws}, but there are {self.steps} steps to draw from; "
                "ask for as many draws as steps, or fewer"
            )
        return self


class LoglikParameters(_OfImages):
    """`POST /loglik`: the log-likelihood of each image, or a lower bound of it.

    `pf_ode` integrates the density along the ODE (`solver`, `divergence`, `dequantization`);
    `elbo` bounds the probability of the levels (`bound`). Of `pf_ode`, an image's `percentile` is
    the percentage of the held-out images whose bits per dimension are at most its own: high is
    unusual. It is null where the checkpoint does not know those of held-out images.
    """

    method: Literal["pf_ode", "elbo"] = "pf_ode"
    solver: Adaptive = Adaptive(tolerance=1e-2)
    divergence: Divergence = Hutchinson()
    dequantization: Dequantization | None = Dequantization()
    bound: Bound = Bound()
    seed: Seed | None = None

    def rows(self, images: int) -> int:
        """Rows that the job occupies: one a dequantised sample of each image."""
        if self.method == "elbo" or self.dequantization is None:
            return images
        return images * self.dequantization.samples

    @property
    def expected_calls(self) -> int:
        """Network calls of one row, about."""
        return (self.bound if self.method == "elbo" else self.solver).expected_calls


Parameters = GenerateParameters | InvertParameters | LoglikParameters

OPERATIONS: dict[str, type[Parameters]] = {
    "generate": GenerateParameters,
    "invert": InvertParameters,
    "loglik": LoglikParameters,
}
"""The operations by the name that a job and a URL carry."""

"""The parameters of the three operations: names, defaults and static ranges, in one place.

API and worker read the same models. What depends on a model's card or on the server's settings
(classes, shapes, the largest count) is checked by the API.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, get_args

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

Priority = Literal["interactive", "batch"]
"""What a job is for: someone waits for it, or it may take its time."""

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""All priorities, the most urgent first."""


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


WholeGrid = Literal["uniform", "quadratic", "log_snr", "karras"]
"""How steps are spread over time, from the model's t_max to its t_min."""

Selection = Literal["trailing", "leading", "linspace"]
"""Selections of the times of a discrete schedule, which need not reach both its ends."""

SELECTED_FROM = 1000  # times of that schedule

Grid = WholeGrid | Selection


class _Costed(_Parameters):
    @property
    @abstractmethod
    def calls(self) -> int:
        """Network calls of one image, at most."""

    @property
    def expected_calls(self) -> int:
        """Network calls of one image, about; those of a fixed grid are known."""
        return self.calls


class _Stepped(_Costed):
    steps: int = Field(default=50, ge=1)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return self.steps


class _GridSolver(_Stepped):
    grid: WholeGrid = "log_snr"


class Euler(_GridSolver):
    """The probability-flow ODE by Euler's method: one call a step, order 1."""

    name: Literal["euler"] = "euler"
    steps: int = Field(default=100, ge=1)


class Heun(_GridSolver):
    """The probability-flow ODE by Heun's method: two calls a step, order 2."""

    name: Literal["heun"] = "heun"
    steps: int = Field(default=50, ge=1)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return 2 * self.steps


class Rk4(_GridSolver):
    """The probability-flow ODE by the classical Runge–Kutta method: four calls a step, order 4."""

    name: Literal["rk4"] = "rk4"
    steps: int = Field(default=50, ge=1)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return 4 * self.steps


class DpmPp2m(_GridSolver):
    """The probability-flow ODE by DPM-Solver++(2M): one call a step, order 2."""

    name: Literal["dpmpp_2m"] = "dpmpp_2m"
    steps: int = Field(default=50, ge=1)


class Reversible(_GridSolver):
    """The probability-flow ODE by a pair that decodes what it encoded to float rounding.

    Two calls a step. Its latents are pairs; latents of other solvers it cannot decode.
    """

    name: Literal["reversible"] = "reversible"
    steps: int = Field(default=50, ge=1)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return 2 * self.steps


EXPECTED_AT_1E3 = 58
EXPECTED_GROWTH = 1.9
"""Network calls of an adaptive solve: at tolerance 1e-3, and how many times more a decade below.

Rough: as measured on the shipped digits (benchmarks/RESULTS.md). An order-5 solver of a smooth
field would grow by 10 ** (1 / 5) = 1.6; a trained network is not smooth.
"""


class Adaptive(_Costed):
    """The probability-flow ODE by an embedded Runge–Kutta pair, step size by image.

    The default is that of encoding and decoding alike: it also closes the round trip of images
    between two modes, where a small error in the latent grows a hundredfold on the way back.
    """

    name: Literal["adaptive"] = "adaptive"
    tolerance: float = Field(default=1e-6, ge=1e-8, le=1e-1)
    max_calls: int = Field(default=2000, ge=8)

    @property
    def calls(self) -> int:
        """Network calls of one image, at most."""
        return self.max_calls

    @property
    def expected_calls(self) -> int:
        """Network calls of one image: EXPECTED_AT_1E3 at 1e-3, EXPECTED_GROWTH times a decade."""
        decades = -3.0 - math.log10(self.tolerance)
        return min(self.max_calls, round(EXPECTED_AT_1E3 * math.pow(EXPECTED_GROWTH, decades)))


FixedSolver = Euler | Heun | Rk4 | DpmPp2m | Reversible
Solver = Annotated[FixedSolver | Adaptive, Field(discriminator="name")]


class Ddpm(_Stepped):
    """Ancestral sampling; `clip` keeps x̂0 within the data's range at every step."""

    name: Literal["ddpm"] = "ddpm"
    steps: int = Field(default=250, ge=1)
    grid: Grid = "uniform"
    variance: Literal["posterior", "beta"] = "posterior"
    clip: bool = False


class Ddim(_Stepped):
    """DDIM; `eta` 0 is deterministic, 1 has the ancestral variance."""

    name: Literal["ddim"] = "ddim"
    steps: int = Field(default=50, ge=1)
    grid: Grid = "uniform"
    eta: float = Field(default=0.0, ge=0, le=1)
    clip: bool = False


class Langevin(_Stepped):
    """Langevin dynamics at the one noise level of time `t` (the model's t_min if null).

    The step is η = `step` · σ². It samples p_t, not the data.
    """

    name: Literal["langevin"] = "langevin"
    steps: int = Field(default=250, ge=1)
    t: float | None = Field(default=None, ge=0)
    step: float = Field(default=0.1, gt=0, lt=2)


class AnnealedLangevin(_Stepped):
    """Annealed Langevin dynamics: `steps` noise levels, η = `delta` · σ² at each."""

    name: Literal["annealed_langevin"] = "annealed_langevin"
    steps: int = Field(default=100, ge=1)
    grid: Grid = "log_snr"
    steps_per_level: int = Field(default=3, ge=1, le=100)
    delta: float = Field(default=0.1, gt=0, lt=2)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return self.steps * self.steps_per_level + 1


class PredictorCorrector(_Stepped):
    """Reverse-SDE steps, each followed by `corrections` Langevin steps of η = 2 r² σ²."""

    name: Literal["predictor_corrector"] = "predictor_corrector"
    steps: int = Field(default=250, ge=1)
    grid: Grid = "uniform"
    r: float = Field(default=0.16, gt=0, lt=1)
    corrections: int = Field(default=1, ge=1, le=100)

    @property
    def calls(self) -> int:
        """Network calls of one image."""
        return self.steps * (1 + self.corrections)


class ReverseSde(_Stepped):
    """The reverse SDE by Euler–Maruyama."""

    name: Literal["reverse_sde"] = "reverse_sde"
    steps: int = Field(default=500, ge=1)
    grid: Grid = "uniform"


class PfOde(_Costed):
    """The probability-flow ODE, deterministic; also decodes latents."""

    name: Literal["pf_ode"] = "pf_ode"
    solver: Solver = Adaptive()

    @property
    def calls(self) -> int:
        """Network calls of one image, at most."""
        return self.solver.calls

    @property
    def expected_calls(self) -> int:
        """Network calls of one image, about."""
        return self.solver.expected_calls


TableSampler = Ddpm | Ddim | Langevin | AnnealedLangevin | PredictorCorrector | ReverseSde
Sampler = Annotated[TableSampler | PfOde, Field(discriminator="name")]


class Stream(_Parameters):
    """Previews: every how many network calls, and of what."""

    every: int = Field(default=10, ge=1)
    what: Literal["x0", "xt"] = "x0"


class Hutchinson(_Parameters):
    """The divergence by probes that are fixed for the whole solve."""

    kind: Literal["hutchinson"] = "hutchinson"
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
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
    index: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1
    )


class Init(_Parameters):
    """What sampling starts from instead of noise."""

    latents: Latents


class _Operation(_Parameters):
    model: str = Field(min_length=1, max_length=200)
    priority: Priority = Field(
        default="interactive",
        description="Jobs that someone waits for start before those that may take their time.",
    )
    class_label: int | None = Field(default=None, ge=0)

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


class GenerateParameters(_Conditioned):
    """`POST /generate`: draw images, or decode latents."""

    count: int = Field(default=1, ge=1)
    seed: Seed | None = None
    seeds: Annotated[list[Seed], Field(fail_fast=True)] | None = Field(default=None, min_length=1)
    sampler: Sampler = Ddpm()
    init: Init | None = None
    stream: Stream | None = None
    format: Literal["png", "webp", "npy"] = "png"

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


class InvertParameters(_Conditioned):
    """`POST /invert`: the latent code of each image."""

    solver: Solver = Adaptive()
    stream: Stream | None = None

    @property
    def expected_calls(self) -> int:
        """Network calls of one row, about: each image is encoded, and decoded for the check."""
        return 2 * self.solver.expected_calls


class Bound(_Costed):
    """How the evidence lower bound is estimated: of `steps` steps, null for continuous time."""

    steps: int | None = Field(default=None, ge=1)
    draws: int = Field(default=64, ge=2)
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


class LoglikParameters(_Operation):
    """`POST /loglik`: the log-likelihood of each image, or a lower bound of it.

    `pf_ode` integrates the density along the ODE (`solver`, `divergence`, `dequantization`);
    `elbo` bounds the probability of the levels (`bound`).
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

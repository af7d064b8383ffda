"""The samplers and solvers that a request may name: their options, defaults and cost.

API and worker read the same models. The names and options are those of `model.samplers`; what is
static about their ranges is here.
"""

import bisect
import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Parameters as they are: no unknown fields, nothing converted, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


WholeGrid = Literal["uniform", "quadratic", "log_snr", "karras"]
"""How steps are spread over time, from the model's t_max to its t_min."""

Selection = Literal["trailing", "leading", "linspace"]
"""Selections of the times of a discrete schedule, which need not reach both its ends."""

SELECTED_FROM = 1000  # times of that schedule

Grid = WholeGrid | Selection


class Costed(Strict):
    """What takes network calls."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Network calls of one image, at most."""

    @property
    def expected_calls(self) -> int:
        """Network calls of one image, about; those of a fixed grid are known."""
        return self.calls


class _Stepped(Costed):
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


EXPECTED = {-1.0: 20, -2.0: 39, -3.0: 57, -5.0: 248}
"""Network calls of an adaptive solve, by the tolerance's decimal logarithm: as measured on the
shipped digits (benchmarks/RESULTS.md). A rough guide for queues, no promise."""


class Adaptive(Costed):
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
        """Network calls of one image, about: EXPECTED, straight lines between and past its logs."""
        wanted = math.log10(self.tolerance)
        known = sorted(EXPECTED)
        i = min(max(bisect.bisect_right(known, wanted), 1), len(known) - 1)
        (low, high), (few, many) = known[i - 1 : i + 1], (EXPECTED[x] for x in known[i - 1 : i + 1])
        calls = few * math.pow(many / few, (wanted - low) / (high - low))
        return min(self.max_calls, round(calls))


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


class PfOde(Costed):
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

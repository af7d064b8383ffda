"""Forward processes: ``x_t = α(t) x_0 + σ(t) ε`` with ε ~ N(0, I).

A process gives log α(t) and σ(t); all that the field derives from them follows here, once
(Song et al. 2021, "Score-based generative modeling through SDEs", §3; Kingma et al. 2021,
"Variational diffusion models", §3):

    drift            f(t)  = d log α / dt
    diffusion        g²(t) = dσ²/dt − 2 f σ²
    log-SNR          λ(t)  = log α² − log σ²
    s → t            x_t | x_s ~ N(α_t/α_s x_s, σ_t² − (α_t/α_s)² σ_s²),   s < t

Time t runs from data (t_min) to noise (t_max). α(t) is the factor on x_0, so DDPM's ᾱ_t is α(t)².
All functions take and return float64 tensors of any shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt, element by element, exact to rounding."""
    with torch.enable_grad():
        t = t.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(t).sum(), t)
    return slope


@dataclass(frozen=True, kw_only=True)
class Process(ABC):
    """A forward process over t in [t_min, t_max].

    ``t_min`` is the smallest time that a network is asked at. It is a property of the checkpoint:
    the smallest time that it was trained on.
    """

    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max:
            raise ValueError(
                f"a process needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}"
            )

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log α(t)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t)."""

    def alpha(self, t: Tensor) -> Tensor:
        """α(t), the factor on x_0."""
        return self.log_alpha(t).exp()

    def scale(self, t: Tensor) -> Tensor:
        """sqrt(α² + σ²): the standard deviation of x_t for data of unit variance."""
        return torch.hypot(self.alpha(t), self.sigma(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = log(α²/σ²), strictly decreasing."""
        return 2.0 * (self.log_alpha(t) - self.sigma(t).log())

    def log_snr_slope(self, t: Tensor) -> Tensor:
        """dλ/dt, negative."""
        return _derivative(self.log_snr, t)

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log α/dt of the SDE dx = f x dt + g dw."""
        return _derivative(self.log_alpha, t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g²(t) = dσ²/dt − 2 f σ² of the SDE dx = f x dt + g dw."""
        variance_slope = _derivative(lambda s: self.sigma(s).square(), t)
        return variance_slope - 2.0 * self.drift(t) * self.sigma(t).square()

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(mean factor, variance) of x_t given x_s, for s <= t.

        x_t | x_s ~ N(α_ts x_s, σ²_ts), α_ts = α_t/α_s, σ²_ts = σ_t² − α_ts² σ_s².
        """
        factor = (self.log_alpha(t) - self.log_alpha(s)).exp()
        # σ_t² (1 − SNR_t/SNR_s): no cancellation where s and t are close.
        variance = -self.sigma(t).square() * torch.expm1(self.log_snr(t) - self.log_snr(s))
        return factor, variance

    def posterior(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weight of x_t, weight of x_0, variance) of x_s given x_t and x_0, for s <= t.

        Kingma et al. 2021, eq. 25–27; Ho et al. 2020, eq. 6–7 for a discrete process.
        """
        factor, variance = self.transition(s, t)
        share = (self.sigma(s) / self.sigma(t)).square()
        x0_weight = self.alpha(s) * variance / self.sigma(t).square()
        return factor * share, x0_weight, variance * share

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of x_T under N(0, (α_T² + σ_T²) I), nats ``(rows,)``; x ``(rows, …)``."""
        u = x / self.scale(torch.tensor(self.t_max, dtype=torch.float64))
        dimensions = u[0].numel()
        log_scale = self.scale(torch.tensor(self.t_max, dtype=torch.float64)).log()
        squared = u.flatten(1).square().sum(1)
        return -0.5 * squared - dimensions * (0.5 * math.log(2.0 * math.pi) + log_scale)

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [t_min, t_max] with λ(t) = log_snr, by bisection to float64 resolution."""
        low = torch.full_like(log_snr, self.t_min)
        high = torch.full_like(log_snr, self.t_max)
        for _ in range(64):
            middle = 0.5 * (low + high)
            too_early = self.log_snr(middle) > log_snr
            low = torch.where(too_early, middle, low)
            high = torch.where(too_early, high, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True, kw_only=True)
class VariancePreserving(Process, ABC):
    """α² + σ² = 1, so σ follows from log α without cancellation."""

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 − α²)."""
        return (-torch.expm1(2.0 * self.log_alpha(t))).sqrt()


@dataclass(frozen=True, kw_only=True)
class VPLinear(VariancePreserving):
    """β(t) = β_min + (β_max − β_min) t: DDPM's linear schedule in continuous time.

    Ho et al. 2020, §4, scaled by T = 1000 as in Song et al. 2021, eq. 32.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """−¼ (β_max − β_min) t² − ½ β_min t."""
        return -0.25 * (self.beta_max - self.beta_min) * t.square() - 0.5 * self.beta_min * t


@dataclass(frozen=True, kw_only=True)
class VPCosine(VariancePreserving):
    """ᾱ(t) = f(t)/f(0), f(t) = cos²(½π (t + s)/(1 + s)). Nichol & Dhariwal 2021, eq. 17.

    t_max stops where α reaches 1e-3; their discrete schedule stops by β ≤ 0.999.
    """

    s: float = 0.008
    t_max: float = 0.99935

    def log_alpha(self, t: Tensor) -> Tensor:
        """log cos(½π (t + s)/(1 + s)) − log cos(½π s/(1 + s))."""
        half_pi = 0.5 * math.pi
        start = math.log(math.cos(half_pi * self.s / (1.0 + self.s)))
        return (half_pi * (t + self.s) / (1.0 + self.s)).cos().log() - start

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 − α²), through cos²a − cos²b = sin(b−a) sin(b+a) where α is near 1."""
        half_pi = 0.5 * math.pi / (1.0 + self.s)
        start = half_pi * self.s
        angle = half_pi * t
        return (angle.sin() * (angle + 2.0 * start).sin()).sqrt() / math.cos(start)


@dataclass(frozen=True, kw_only=True)
class VPQuadratic(VariancePreserving):
    """√β linear in t: β(t) = (√β_min + (√β_max − √β_min) t)². Ho et al.'s "quad" schedule."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """−½ ∫ β = −½ (a² t + a b t² + ⅓ b² t³), a = √β_min, b = √β_max − √β_min."""
        a = math.sqrt(self.beta_min)
        b = math.sqrt(self.beta_max) - a
        return -0.5 * t * (a * a + t * (a * b + t * (b * b / 3.0)))


@dataclass(frozen=True, kw_only=True)
class ScaledLinear(VPQuadratic):
    """`VPQuadratic` with the constants of latent diffusion (Rombach et al. 2022)."""

    beta_min: float = 0.85
    beta_max: float = 12.0


@dataclass(frozen=True, kw_only=True)
class LinearZero(VariancePreserving):
    """β(t) = β_max t: a linear schedule that starts at no noise at all."""

    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """−¼ β_max t²."""
        return -0.25 * self.beta_max * t.square()


@dataclass(frozen=True, kw_only=True)
class QuadraticZero(VariancePreserving):
    """β(t) = β_max t²: a quadratic schedule that starts at no noise at all."""

    beta_max: float = 30.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """−β_max t³/6."""
        return -self.beta_max * t**3 / 6.0


@dataclass(frozen=True, kw_only=True)
class SubVP(Process):
    """VPLinear's α with σ = 1 − α²: less noise at every t. Song et al. 2021, eq. 29."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """−¼ (β_max − β_min) t² − ½ β_min t."""
        return -0.25 * (self.beta_max - self.beta_min) * t.square() - 0.5 * self.beta_min * t

    def sigma(self, t: Tensor) -> Tensor:
        """1 − α²."""
        return -torch.expm1(2.0 * self.log_alpha(t))


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Process):
    """α = 1, σ(t) = σ_min (σ_max/σ_min)^t. Song et al. 2021, eq. 9 and 30."""

    t_min: float = 0.0
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return 0.0 * t

    def sigma(self, t: Tensor) -> Tensor:
        """σ_min (σ_max/σ_min)^t."""
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()


@dataclass(frozen=True, kw_only=True)
class FlowLine(Process):
    """α = 1 − t, σ = t: the straight line of flow matching (Lipman et al. 2023).

    t_max stops where α is 1e-3: there the drift 1/(1 − t) is still finite.
    """

    t_max: float = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 − t)."""
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t


@dataclass(frozen=True, kw_only=True)
class DiscreteDDPM(VariancePreserving):
    """A table of β, as a DDPM was trained on; continuous in between.

    After step i of T (i = 1 … T) stands time t = i/T, where ᾱ = Π (1 − β_j), j <= i (Ho et al.
    2020, §2: β is a variance). Between two steps the log-SNR is interpolated linearly, so any
    other grid and solver can use the network; t_min is the first step.
    """

    betas: tuple[float, ...] = ()
    t_min: float = 0.0

    def __post_init__(self) -> None:
        if not self.betas or not all(0.0 < beta < 1.0 for beta in self.betas):
            raise ValueError("betas must be numbers strictly between 0 and 1, at least one")
        if self.t_min == 0.0:
            object.__setattr__(self, "t_min", 1.0 / len(self.betas))
        super().__post_init__()

    def log_alpha(self, t: Tensor) -> Tensor:
        """½ log sigmoid(λ): α² = sigmoid(λ) where α² + σ² = 1."""
        return 0.5 * torch.nn.functional.logsigmoid(self.log_snr(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(sigmoid(−λ))."""
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """λ at the steps, linear in between (and beyond the first step)."""
        table = self._log_snr_table
        position = t * len(table) - 1.0
        below = position.detach().floor().long().clamp(0, max(len(table) - 2, 0))
        above = (below + 1).clamp(max=len(table) - 1)
        return table[below] + (position - below) * (table[above] - table[below])

    @cached_property
    def _log_snr_table(self) -> Tensor:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))


PROCESSES: dict[str, type[Process]] = {
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "vp_quadratic": VPQuadratic,
    "scaled_linear": ScaledLinear,
    "linear_zero": LinearZero,
    "quadratic_zero": QuadraticZero,
    "sub_vp": SubVP,
    "ve": VarianceExploding,
    "flow": FlowLine,
    "discrete_ddpm": DiscreteDDPM,
}

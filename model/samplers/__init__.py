"""Samplers: each a function ``(process, times, **options) -> Plan``, one short file each.

``times`` (steps,) runs from t_max to t_min. `SAMPLERS` draw from noise and end in a denoising
step (`langevin` excepted); `ODE_SOLVERS` follow the probability-flow ODE between the first and
the last time, in either direction, and stop there, where they can be inverted.
"""

from __future__ import annotations

from collections.abc import Callable

from model.plan import Plan
from model.samplers.annealed_langevin import annealed_langevin
from model.samplers.ddim import ddim
from model.samplers.ddpm import ddpm
from model.samplers.dpmpp_2m import dpmpp_2m
from model.samplers.euler import euler
from model.samplers.heun import heun
from model.samplers.langevin import langevin
from model.samplers.predictor_corrector import predictor_corrector
from model.samplers.reverse_sde import reverse_sde
from model.samplers.reversible import reversible
from model.samplers.rk4 import rk4

SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "langevin": langevin,
    "annealed_langevin": annealed_langevin,
    "predictor_corrector": predictor_corrector,
    "reverse_sde": reverse_sde,
}

ODE_SOLVERS: dict[str, Callable[..., Plan]] = {
    "euler": euler,
    "heun": heun,
    "rk4": rk4,
    "dpmpp_2m": dpmpp_2m,
    "reversible": reversible,
}

__all__ = [
    "ODE_SOLVERS",
    "SAMPLERS",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "heun",
    "langevin",
    "predictor_corrector",
    "reverse_sde",
    "reversible",
    "rk4",
]

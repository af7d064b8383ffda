"""Every process, ready to use: the discrete one needs a table of β."""

from typing import Any

from model.process import PROCESSES, Process

BETAS = tuple(1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000))
"""Ho et al. 2020, §4: linear from 1e-4 to 0.02 over T = 1000."""


def make(name: str, **fields: Any) -> Process:
    """The process of this name in `PROCESSES` with these fields."""
    needed = {"betas": BETAS} if name == "discrete_ddpm" else {}
    return PROCESSES[name](**needed, **fields)

"""The skeletons of docs/extending.md do what the page says."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model.process
from model import grids
from model.process import VPLinear
from tests.laws.gaussian import final_variance, marginal_variance

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def skeleton(name: str) -> Any:
    """What the code block that defines this name defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    code = next(block for block in blocks if f" {name}(" in block)
    scope: dict[str, Any] = {"__name__": "model.process", **vars(model.process)}
    exec(re.sub(r"^   ", "", code, flags=re.MULTILINE), scope)
    return scope[name]


def test_the_sampler_has_the_order_that_its_docstring_says() -> None:
    process, steps = VPLinear(t_min=1e-3), (160, 320, 640)
    errors = []
    for n in steps:
        plan = skeleton("ralston")(process, grids.log_snr(process, n + 1))
        start = marginal_variance(process, process.t_max, 0.25)
        end = marginal_variance(process, process.t_min, 0.25)
        errors.append(abs(math.sqrt(final_variance(plan, 0.25, start)) - math.sqrt(end)))
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)


def test_the_process_has_the_beta_that_its_docstring_says() -> None:
    process = skeleton("VPExponential")()
    t = torch.tensor([1e-5, 0.3, 0.9], dtype=torch.float64)
    beta = process.beta_min * (process.beta_max / process.beta_min) ** t
    assert torch.allclose(process.drift(t), -0.5 * beta, rtol=1e-9)
    assert torch.allclose(process.diffusion_squared(t), beta, rtol=1e-6)

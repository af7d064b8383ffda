"""What a network can do while it is trained: a grid of samples, and a bound on held-out images.

Both are rough and fast, with the same noise every time, so that two of a run compare.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import pictures
from model.denoiser import Denoiser
from model.elbo import elbo
from model.follow import replay
from model.grids import log_snr
from model.noise import image_seeds
from model.plan import from_prior
from model.process import Process
from model.query import UNCONDITIONAL, Condition, run
from model.samplers import ddim
from model.unet import UNet, UNetConfig
from training.data import Dataset

_STEPS, _LINES, _COLUMNS = 25, 4, 8
_IMAGES, _DRAWS, _RECON_DRAWS = 64, 16, 2  # of the bound


class Preview:
    """Keeps a copy of a network on the CPU or GPU, to be given weights."""

    def __init__(
        self,
        architecture: UNetConfig,
        process: Process,
        dataset: Dataset,
        prediction: str,
        device: torch.device,
    ) -> None:
        self._process, self._spec = process, dataset.spec
        held_out = dataset.held_out
        spread = np.linspace(0, len(held_out) - 1, min(_IMAGES, len(held_out)), dtype=np.int64)
        self._held_out = held_out.take(spread)
        self._network = UNet(architecture).to(device).eval().requires_grad_(False)
        self._denoiser = Denoiser(
            network=self._network, prediction=prediction, dtype=torch.float32, device=device
        )
        self._columns = min(architecture.classes, 16) or _COLUMNS
        labels = torch.full((_LINES * self._columns,), UNCONDITIONAL)
        if architecture.classes:
            labels = torch.arange(self._columns).repeat(_LINES)
        self._labels = labels

    def grid(self, weights: dict[str, Tensor]) -> NDArray[np.uint8]:
        """Samples by DDIM, one class a column where there are classes: (H, W, C)."""
        self._network.load_state_dict(weights)
        seeds = torch.tensor(image_seeds(0, len(self._labels)))
        condition = Condition(
            label=self._labels, guidance=torch.ones(len(self._labels), dtype=torch.float64)
        )
        plan = ddim(self._process, log_snr(self._process, _STEPS))
        x = from_prior(plan, seeds, self._spec.shape)
        x = run(replay(plan, x, seeds, condition), self._denoiser).x
        return pictures.grid(pictures.to_bytes(self._spec, x), self._columns)

    def bits_per_dim(self, weights: dict[str, Tensor]) -> float:
        """The evidence bound on up to 64 held-out images, without classes, from few draws."""
        self._network.load_state_dict(weights)
        count = len(self._held_out)
        found = run(
            elbo(
                self._process,
                self._spec,
                self._held_out.to(torch.float64),
                Condition.same(count),
                torch.tensor(image_seeds(0, count)),
                draws=_DRAWS,
                recon_draws=_RECON_DRAWS,
            ),
            self._denoiser,
        )
        return float(found.total.mean()) / (self._spec.dimensions * math.log(2.0))


def save(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a grid as a PNG."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pictures.encode(sheet))

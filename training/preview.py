"""A grid of samples while a network is trained: few, fast, and the same noise every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import pictures
from model.data import DataSpec
from model.denoiser import Denoiser
from model.follow import replay
from model.grids import log_snr
from model.noise import image_seeds
from model.plan import from_prior
from model.process import Process
from model.query import UNCONDITIONAL, Condition, run
from model.samplers import ddim
from model.unet import UNet, UNetConfig

_STEPS, _LINES, _COLUMNS = 25, 4, 8


class Preview:
    """Draws samples by DDIM on the CPU's or GPU's copy of a network that it keeps."""

    def __init__(
        self,
        architecture: UNetConfig,
        process: Process,
        spec: DataSpec,
        prediction: str,
        device: torch.device,
    ) -> None:
        self._process, self._spec = process, spec
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
        """Samples of these weights, one class a column where there are classes: (H, W, C)."""
        self._network.load_state_dict(weights)
        seeds = torch.tensor(image_seeds(0, len(self._labels)))
        condition = Condition(
            label=self._labels, guidance=torch.ones(len(self._labels), dtype=torch.float64)
        )
        plan = ddim(self._process, log_snr(self._process, _STEPS))
        x = from_prior(plan, seeds, self._spec.shape)
        x = run(replay(plan, x, seeds, condition), self._denoiser).x
        return pictures.grid(pictures.to_bytes(self._spec, x), self._columns)


def save(path: Path, sheet: NDArray[np.uint8]) -> None:
    """Write a grid as a PNG."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pictures.encode(sheet))

"""What images are compared by: a function from their levels to features ``(images, d)``.

pixels        the values themselves, in [−1, 1]
FILE          the last hidden layer of a classifier that `fokker features` trained
inception     Inception-v3's 2,048, for 8-bit RGB; the extra `fid` brings torch-fidelity's
              network, the user its weights
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data import DataSpec
from training.evaluation import classifier
from training.evaluation.frechet import Features

PIXELS = "pixels"
INCEPTION = "inception:"

_ROWS = 256


class FeaturesError(ValueError):
    """Features that cannot be had; says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """name: what a report calls them. function: levels ``(rows, C, H, W)`` to ``(rows, d)``."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, levels: Tensor) -> Features:
        """The features of levels ``(images, C, H, W)`` of any dtype, in float64."""
        parts: list[NDArray[np.float64]] = [
            self.function(levels[i : i + _ROWS]).to(torch.float64).cpu().numpy()
            for i in range(0, len(levels), _ROWS)
        ]
        return np.concatenate(parts)


def extractor(name: str, spec: DataSpec, device: str = "cpu") -> Extractor:
    """The features of a name: `pixels`, a classifier's file, or `inception:WEIGHTS`.

    Raises `FeaturesError` for what cannot be read or does not fit the data.
    """
    if name == PIXELS:
        return pixels(spec)
    if name.startswith(INCEPTION):
        return _inception(Path(name.removeprefix(INCEPTION)), spec, device)
    path = Path(name)
    if not path.is_file():
        raise FeaturesError(
            f"no features {name!r}: there are {PIXELS!r}, a file that `fokker features` wrote, "
            f"and {INCEPTION + 'WEIGHTS'!r}"
        )
    try:
        network = classifier.load(path)
    except ValueError as error:
        raise FeaturesError(str(error)) from error
    theirs = network.config
    if (theirs.shape, theirs.levels) != (spec.shape, spec.levels):
        raise FeaturesError(
            f"{path} knows images of shape {theirs.shape} with {theirs.levels} levels; "
            f"these have {spec.shape} and {spec.levels}. Train one on them with `fokker features`"
        )
    return of_classifier(path.stem, network, device)


def pixels(spec: DataSpec) -> Extractor:
    """The values in [−1, 1], whatever the model's range."""
    return Extractor(
        name=PIXELS, function=lambda levels: (2.0 * (levels + 0.5) / spec.levels - 1.0).flatten(1)
    )


def of_classifier(name: str, network: classifier.Classifier, device: str = "cpu") -> Extractor:
    """The last hidden layer of a classifier."""
    network = network.to(device).eval()

    @torch.no_grad()
    def function(levels: Tensor) -> Tensor:
        return network.features(levels.to(device, torch.float32))

    return Extractor(name=name, function=function)


def _inception(weights: Path, spec: DataSpec, device: str) -> Extractor:
    """FID's own Inception-v3, whose resizing and weights are those of the published figures."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise FeaturesError(
            "Inception features need torch-fidelity: pip install 'fokker[fid]'"
        ) from error
    if not weights.is_file():
        raise FeaturesError(
            f"no file {weights}: Inception's weights are not shipped; torch-fidelity's page of "
            "releases has them (weights-inception-2015-12-05-6726825d.pth)"
        )
    if spec.shape[0] != 3:
        raise FeaturesError(f"Inception looks at RGB images; these have {spec.shape[0]} channels")
    try:
        # torch-fidelity unpickles whatever the file holds; this lets nothing but tensors pass.
        torch.load(weights, weights_only=True)
    except Exception as error:
        raise FeaturesError(f"{weights} is no file of weights: {error}") from error
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    )
    network = network.to(device).eval()

    @torch.no_grad()
    def function(levels: Tensor) -> Tensor:
        bytes_ = (levels.double() * (255.0 / (spec.levels - 1))).round().to(torch.uint8)
        (found,) = network(bytes_.to(device))
        answer: Tensor = found
        return answer

    return Extractor(name="inception-v3 (2048)", function=function)

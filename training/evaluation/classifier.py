"""A small convolutional classifier, whose last hidden layer is a space to compare images in.

Trained on a dataset's own classes it sees what makes its images differ, which a network for
photographs does not see in 8×8 digits. Distances by it compare only with others by the same file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.data import DataSpec
from training.data import Split

FORMAT = 1
_METADATA_KEY = "fokker_features"
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """shape: (C, H, W) and levels of the images. channels: of each stage; each halves the image."""

    shape: tuple[int, int, int]
    levels: int
    classes: int
    channels: tuple[int, ...] = (32, 64, 128)
    features: int = 64

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(
                f"a classifier needs at least 2 classes, the data have {self.classes}; "
                "compare by pixels instead"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """AdamW, half a cosine down to zero; each image is moved by up to one pixel and dequantised."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0


class Classifier(nn.Module):
    """Levels ``(rows, C, H, W)`` to logits ``(rows, classes)``."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        stages: list[nn.Module] = []
        before = config.shape[0]
        for i, after in enumerate(config.channels):
            stages += [
                nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
            before = after
        self.stages = nn.Sequential(*stages)
        height, width = config.shape[1:]
        for _ in config.channels[1:]:
            height, width = -(-height // 2), -(-width // 2)
        # Pooled to at most 2×2: where things are counts for digits, and size does not grow.
        self.pool = nn.AdaptiveAvgPool2d((min(height, 2), min(width, 2)))
        self.hidden = nn.Linear(before * min(height, 2) * min(width, 2), config.features)
        self.head = nn.Linear(config.features, config.classes)

    def features(self, levels: Tensor) -> Tensor:
        """The last hidden layer ``(rows, features)``."""
        x = 2.0 * (levels + 0.5) / self.config.levels - 1.0
        hidden: Tensor = F.silu(self.hidden(self.pool(self.stages(x)).flatten(1)))
        return hidden

    def forward(self, levels: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.features(levels))
        return logits


def train(
    spec: DataSpec,
    split: Split,
    settings: TrainingSettings,
    watch: Callable[[int, float], None] = lambda epoch, loss: None,
    device: str = "cpu",
) -> Classifier:
    """A classifier of a split's images.

    watch: sees every epoch's number, from 1, and its mean loss. Same seed, same weights on a CPU.
    Raises `ValueError` for data without classes.
    """
    config = ClassifierConfig(shape=spec.shape, levels=spec.levels, classes=spec.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Classifier(config).to(device).train()
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    starts = range(0, len(split), settings.batch_size)
    for epoch in range(settings.epochs):
        total = 0.0
        order = torch.randperm(len(split), generator=generator)
        for first in starts:
            rows = order[first : first + settings.batch_size]
            done = (epoch + first / len(split)) / settings.epochs
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
            x = _disturbed(split.take(rows).float(), generator).to(device)
            loss = F.cross_entropy(network(x), split.labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(rows)
        watch(epoch + 1, total / len(split))
    return network.cpu().eval()


@torch.no_grad()
def accuracy(network: Classifier, split: Split) -> float:
    """The share of a split's images that are given their label."""
    right = 0
    for first in range(0, len(split), _ROWS):
        some = slice(first, first + _ROWS)
        found = network(split.take(some).float()).argmax(1)
        right += int((found == split.labels[some]).sum())
    return right / len(split)


def save(path: Path, network: Classifier, notes: dict[str, object]) -> None:
    """Write the classifier; notes (JSON values) say what it was trained on and how well it does."""
    document = {"format": FORMAT, **dataclasses.asdict(network.config), "notes": notes}
    partial = path.with_name(path.name + ".partial")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, partial, metadata={_METADATA_KEY: json.dumps(document, sort_keys=True)})
    partial.replace(path)


def load(path: Path) -> Classifier:
    """Read a classifier; raises `ValueError` that names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _METADATA_KEY not in metadata:
            raise ValueError("it is no classifier that `fokker features` wrote")
        document = json.loads(metadata[_METADATA_KEY])
        if document.pop("format", None) != FORMAT:
            raise ValueError("its format is another version's; train it again")
        document.pop("notes", None)
        lists: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document.items()
        }
        network = Classifier(ClassifierConfig(**lists))
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return network.eval()


def _disturbed(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Dequantised, and moved by up to a pixel each way, the outermost ones repeated."""
    down, right = (int(torch.randint(3, (), generator=generator)) for _ in range(2))
    height, width = levels.shape[2:]
    padded = F.pad(levels, (1, 1, 1, 1), mode="replicate")
    moved = padded[:, :, down : down + height, right : right + width]
    return moved + torch.rand(moved.shape, generator=generator) - 0.5

"""The card of a checkpoint: what it is, how it was made, how good it is; and its sample grid."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from model import pictures
from model.checkpoint import Checkpoint
from model.data import DataSpec
from training.config import Config
from training.evaluation.evaluate import Evaluation
from training.evaluation.likelihood import BitsPerDim

GRID = 80
"""Samples of a card at most."""

_COLUMNS = 8  # of a grid that has none for each class
_MAGNIFY = 6


def save_grid(path: Path, spec: DataSpec, x: Tensor, columns: int) -> None:
    """Images x ``(N, C, H, W)`` as one PNG, row by row, magnified."""
    sheet = pictures.grid(pictures.to_bytes(spec, x), columns)
    image = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    size = (image.width * _MAGNIFY, image.height * _MAGNIFY)
    image.resize(size, Image.Resampling.NEAREST).save(path)


def grid_rows(labels: Tensor, classes: int, most: int) -> tuple[list[int], int]:
    """Which samples of these labels are shown, ``most`` or fewer, and in how many columns.

    A class a column where there are 2 to 20 classes, with equally many of each.
    """
    listed = labels.tolist()
    by_class = [[i for i, label in enumerate(listed) if label == one] for one in range(classes)]
    rows = min((len(some) for some in by_class), default=0) if classes <= 20 else 0
    rows = min(rows, most // max(classes, 1))
    if classes < 2 or rows == 0:
        count = min(most, len(listed))
        return [round(i * (len(listed) - 1) / max(count - 1, 1)) for i in range(count)], _COLUMNS
    return [by_class[one][row] for row in range(rows) for one in range(classes)], classes


def card(
    *,
    name: str,
    command: str,
    checkpoint: Checkpoint,
    config: Config,
    seconds: float,
    machine: str,
    found: Evaluation,
) -> str:
    """The card in Markdown."""
    description = checkpoint.description
    data, process, training = description.data, description.process, description.training
    channels, height, width = data.shape
    classes = f"{data.classes} classes" if data.classes else "no classes"
    lines = [
        f"# {name}",
        "",
        f"Images of {height}×{width}×{channels}, {data.levels} levels, {classes}. "
        f"A U-Net of {checkpoint.parameters:,} parameters that predicts {description.prediction}.",
        "",
        f"![samples]({name}.png)",
        "",
        f"Samples: DDPM, {config.evaluate.sample_steps} steps, no guidance; one class a column.",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| seed | {config.train.seed} |",
        f"| steps × batch | {config.train.steps} × {config.train.batch_size} |",
        f"| time taken | {seconds / 60:.1f} minutes on {machine} |",
        f"| data | {training['dataset']}, {training['train_images']} to train on, "
        f"{training['held_out_images']} held out ({training['data_fingerprint'][:19]}…) |",
        f"| process | {type(process).__name__}, t from {process.t_min:g} to {process.t_max:g} |",
        f"| held-out bits/dim | {_bits(found.likelihoods.summary())} |",
    ]
    if found.given is not None:
        lines.append(f"| held-out bits/dim, given the class | {_bits(found.given.summary())} |")
    samples = found.document.get("samples", {})
    if "class_accuracy" in samples:
        lines.append(
            f"| samples given their asked class | {samples['class_accuracy']:.1%} of "
            f"{samples['count']} |"
        )
    if "frechet" in samples:
        equal = samples["frechet"]["of_equally_many"]
        lines.append(
            f"| Fréchet distance over {samples['features']} | {equal['samples']:.3g}; held-out "
            f"images {equal['held_out']:.3g} ({equal['images']} each) |"
        )
    lines += [
        f"| checkpoint | `{checkpoint.digest}` |",
        "",
        "bits/dim: probability-flow ODE at the checkpoint's own t_min "
        f"({process.t_min:g}, the smallest time it was trained on), over {_whole(found)}, "
        "uniform dequantisation with one sample an image, "
        f"{config.evaluate.probes} Rademacher probes, tolerance {config.evaluate.tolerance:g}; "
        "± is the standard error over images. The part of the likelihood below t_min is left out. "
        "The classifier is a logistic regression on the real training images.",
        "",
    ]
    return "\n".join(lines)


def _bits(bits: BitsPerDim) -> str:
    tail = "" if bits.converged else f", {bits.unfinished} more not finished"
    return (
        f"{bits.mean:.3f} ± {bits.standard_error:.3f} over {bits.images} images "
        f"({bits.mean_nfe:.0f} network calls an image{tail})"
    )


def _whole(found: Evaluation) -> str:
    held_out = found.document["data"]["held_out_images"]
    images = len(found.likelihoods.converged)
    if images == held_out:
        return "the whole held-out split"
    return f"{images} of {held_out} held-out images"

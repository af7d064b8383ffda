"""The card of a checkpoint: what it is, how it was made, how good it is; and its sample grid."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from model import pictures
from model.checkpoint import Checkpoint
from model.data import DataSpec
from training.config import Config
from training.evaluation import BitsPerDim

_MAGNIFY = 6


def save_grid(path: Path, spec: DataSpec, x: Tensor, columns: int) -> None:
    """Images x ``(N, C, H, W)`` as one PNG, row by row, magnified."""
    sheet = pictures.grid(pictures.to_bytes(spec, x), columns)
    image = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    size = (image.width * _MAGNIFY, image.height * _MAGNIFY)
    image.resize(size, Image.Resampling.NEAREST).save(path)


def card(
    *,
    name: str,
    command: str,
    checkpoint: Checkpoint,
    config: Config,
    seconds: float,
    machine: str,
    unconditional: BitsPerDim,
    conditional: BitsPerDim | None,
    accuracy: float | None,
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
        f"| held-out bits/dim | {_bits(unconditional)} |",
    ]
    if conditional is not None:
        lines.append(f"| held-out bits/dim, given the class | {_bits(conditional)} |")
    if accuracy is not None:
        count = data.classes * config.evaluate.samples_per_class
        lines.append(f"| samples given their asked class | {accuracy:.1%} of {count} |")
    lines += [
        f"| checkpoint | `{checkpoint.digest}` |",
        "",
        "bits/dim: probability-flow ODE at the checkpoint's own t_min "
        f"({process.t_min:g}, the smallest time it was trained on), over the whole held-out split, "
        "uniform dequantisation with one sample an image, "
        f"{config.evaluate.probes} Rademacher probes, tolerance {config.evaluate.tolerance:g}; "
        "± is the standard error over images. The part of the likelihood below t_min is left out. "
        "The classifier is a logistic regression on the real training images.",
        "",
    ]
    return "\n".join(lines)


def _bits(bits: BitsPerDim) -> str:
    tail = "" if bits.converged else ", not all converged"
    return (
        f"{bits.mean:.3f} ± {bits.standard_error:.3f} over {bits.images} images "
        f"({bits.mean_nfe:.0f} network calls an image{tail})"
    )

"""The report of a run or an evaluation: one HTML file that needs no other, nor the network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from model import pictures
from model.checkpoint import Checkpoint
from model.data import DataSpec
from training import report_charts
from training.evaluation.evaluate import Evaluation
from training.report import grid_rows
from training.report_charts import Bars, Series
from training.watch import HELD_OUT, METRICS

_GRID = 100  # samples shown at most
_POINTS = 400  # of the loss curve
_SMOOTH = 40
_BINS = 40
_SMALL = 1e-4  # below, a value with its error is written as a power of ten


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A figure by step of training."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run has written of its steps; None where it has not."""

    loss: Recorded | None = None
    held_out: Recorded | None = None

    @classmethod
    def of(cls, folder: Path) -> Run:
        """That of a run's folder."""
        return cls(
            loss=_read(folder / METRICS, "loss"), held_out=_read(folder / HELD_OUT, "bits_per_dim")
        )


def _read(path: Path, name: str) -> Recorded | None:
    """A figure of JSON lines; None without any. Lines that lack it are passed over."""
    if not path.is_file():
        return None
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line or "{}"))
        except ValueError:  # cut: the run was killed, or is writing it now
            break
    kept = [line for line in lines if isinstance(line.get(name), int | float)]
    if not kept:
        return None
    return Recorded(
        steps=[int(line["step"]) for line in kept], values=[float(line[name]) for line in kept]
    )


def write(
    path: Path,
    name: str,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    run: Run = Run(),
) -> None:
    """Write the page."""
    environment = Environment(
        loader=PackageLoader("training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["error"] = _with_error
    page = environment.get_template("report.html").render(
        name=name,
        facts=_facts(checkpoint),
        found=evaluation.document,
        charts={
            "loss": Markup(_loss_chart(run.loss)),
            "held_out": Markup(_held_out_chart(run.held_out)),
            "curve": Markup(_curve_chart(evaluation)),
            "bits": Markup(_bits_chart(evaluation)),
        },
        pictures=_pictures(checkpoint.description.data, evaluation),
        settings=json.dumps(evaluation.document["settings"], indent=1),
    )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    description = checkpoint.description
    data, training = description.data, description.training
    channels, height, width = data.shape
    process = description.process
    facts = [
        ("Images", f"{height}×{width}×{channels}, {data.levels} levels"),
        ("Classes", ", ".join(data.class_names or ()) or "none"),
        ("Network", f"{checkpoint.parameters:,} parameters, predicts {description.prediction}"),
        ("Process", f"{type(process).__name__}, t from {process.t_min:g} to {process.t_max:g}"),
        ("Checkpoint", checkpoint.digest),
    ]
    if "steps" in training:
        seen = training.get("images_seen")
        tail = f", {seen:,} images seen" if isinstance(seen, int) else ""
        facts.insert(4, ("Training", f"{training['steps']:,} steps{tail}"))
    return facts


def _held_out_chart(bound: Recorded | None) -> str:
    if bound is None or len(bound.steps) < 2:
        return ""
    series = Series(name="bound", x=[float(step) for step in bound.steps], y=bound.values)
    return report_charts.lines([series], x="step", y="bits/dim", y_scale="log")


def _loss_chart(loss: Recorded | None) -> str:
    if loss is None:
        return ""
    return report_charts.lines(
        [
            _binned("loss", loss, _POINTS, faint=True),
            _binned("smoothed", loss, _SMOOTH),
        ],
        x="step",
        y="training loss",
        y_scale="log",
    )


def _binned(name: str, loss: Recorded, count: int, faint: bool = False) -> Series:
    """Means of so many stretches of the curve, each at its middle step."""
    parts = np.array_split(np.arange(len(loss.steps)), min(count, len(loss.steps)))
    steps, values = np.array(loss.steps, float), np.array(loss.values)
    return Series(
        name=name,
        x=[float(steps[part].mean()) for part in parts],
        y=[float(values[part].mean()) for part in parts],
        faint=faint,
    )


def _curve_chart(evaluation: Evaluation) -> str:
    curve = evaluation.bound.curve
    series = Series(name="loss", x=curve.log_snr, y=curve.loss, errors=curve.standard_error)
    return report_charts.lines(
        [series], x="log-SNR: noise on the left, data on the right", y="‖ε − ε̂‖²/D", y_scale="log"
    )


def _bits_chart(evaluation: Evaluation) -> str:
    values = evaluation.likelihoods.finished
    if len(values) < 2:
        return ""
    counts, edges = np.histogram(values, bins=min(_BINS, max(5, int(math.sqrt(len(values)) * 2))))
    return report_charts.histogram(
        Bars(edges=edges.tolist(), counts=counts.astype(float).tolist()),
        x="bits/dim of a held-out image",
        y="images",
    )


def _pictures(spec: DataSpec, evaluation: Evaluation) -> dict[str, Any]:
    """Data URIs; empty where the images are no pictures or none were drawn."""
    if spec.shape[0] not in pictures.CHANNELS or evaluation.samples is None:
        return {"samples": "", "strip": [], "neighbours": []}
    assert evaluation.labels is not None
    assert evaluation.strip is not None
    assert evaluation.neighbours is not None
    assert evaluation.neighbour_distances is not None
    chosen, columns = grid_rows(evaluation.labels, spec.classes, _GRID)
    unit = 1.0 / math.sqrt(spec.dimensions)
    names = spec.class_names or ()
    shown = [names[i] if 0 <= i < len(names) else "" for i in evaluation.shown_labels]
    return {
        "samples": _picture(spec, evaluation.samples[chosen], columns),
        "columns": [*names] if columns == len(names) else [],
        "strip": [
            {"label": label, "pictures": [_picture(spec, x[None], 1) for x in row]}
            for label, row in zip(shown, evaluation.strip, strict=True)
        ],
        "neighbours": [
            {
                "label": label,
                "sample": _picture(spec, row[-1:], 1),
                "nearest": [
                    {"picture": _picture(spec, spec.to_model(v.double())[None], 1), "distance": d}
                    for v, d in zip(levels, distances * unit, strict=True)
                ],
            }
            for label, row, levels, distances in zip(
                shown,
                evaluation.strip,
                evaluation.neighbours,
                evaluation.neighbour_distances,
                strict=True,
            )
        ],
    }


def _picture(spec: DataSpec, x: Tensor, columns: int) -> str:
    encoded = pictures.encode(pictures.grid(pictures.to_bytes(spec, x), columns))
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


def _number(value: float | None, digits: int = 4) -> str:
    return "n/a" if value is None else f"{value:.{digits}g}"


def _with_error(value: float | None, error: float | None) -> str:
    """A value with its error, to the error's second digit; small ones by powers of ten."""
    if value is None:
        return "n/a"
    if not error:
        return f"{value:.4g}"
    if max(abs(value), error) < _SMALL:
        return f"{value:.1e} ± {error:.1e}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def summary(evaluation: Evaluation) -> Sequence[tuple[str, str]]:
    """The figures in lines, for a terminal."""
    found = evaluation.document

    def estimate(entry: dict[str, Any]) -> str:
        return _with_error(entry["value"], entry["standard_error"])

    def bits(entry: dict[str, Any]) -> str:
        text = _with_error(entry["mean"], entry["standard_error"])
        rest = f", {entry['unfinished']} not finished" if entry["unfinished"] else ""
        return f"{text} over {entry['images']} images{rest}"

    lines = [("bits/dim", bits(found["bits_per_dim"]))]
    if found["bits_per_dim_given_class"]:
        lines.append(("bits/dim given the class", bits(found["bits_per_dim_given_class"])))
    lower = found["elbo"]
    terms = ", ".join(f"{term} {estimate(lower[term])}" for term in ("prior", "diffusion", "recon"))
    lines.append(("evidence bound, bits/dim", f"{estimate(lower['total'])} ({terms})"))
    samples = found.get("samples")
    if samples is None:
        return lines
    equal = samples["frechet"]["of_equally_many"]
    cover, near = samples["precision_recall"], samples["memorisation"]
    lines += [
        ("features", f"{samples['features']} ({samples['dimensions']})"),
        (
            "Fréchet distance",
            f"{_number(samples['frechet']['samples'])} for {samples['count']} samples; of "
            f"{equal['images']}: samples {_number(equal['samples'])}, "
            f"held-out images {_number(equal['held_out'])}",
        ),
        (
            "KID",
            f"{estimate(samples['kid']['samples'])}; "
            f"held-out images {estimate(samples['kid']['held_out'])}",
        ),
        (
            "precision, recall",
            f"{cover['samples']['precision']:.3f}, {cover['samples']['recall']:.3f} of "
            f"{cover['images']}; held-out images {cover['held_out']['precision']:.3f}, "
            f"{cover['held_out']['recall']:.3f}",
        ),
        (
            "memorisation",
            f"a sample is nearer to training than a held-out image {near['nearer']:.1%} of the "
            f"time (z = {near['z']:.1f}); copies: {near['copies']}",
        ),
    ]
    if "class_accuracy" in samples:
        lines.append(
            (
                "samples of their class",
                f"{samples['class_accuracy']:.1%}; held-out images "
                f"{samples['class_accuracy_held_out']:.1%}",
            )
        )
    return lines

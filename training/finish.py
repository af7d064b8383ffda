"""What a run ends with: its model measured, its quantiles in the checkpoint, card, grid, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from traceback import format_exc

import torch

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from training import report, report_html
from training.config import Config
from training.data import Dataset
from training.evaluation.evaluate import Evaluation, Settings, evaluate
from training.evaluation.likelihood import (
    LikelihoodSettings,
    quantiles_entry,
    store_quantiles,
)


def finish(
    config: Config,
    dataset: Dataset,
    path: Path,
    *,
    command: str,
    seconds: float,
    machine: str,
    say: Callable[[str], None],
) -> Checkpoint:
    """Evaluate the checkpoint at ``path``, store its quantiles, and write what belongs beside it.

    NAME.md and NAME.png are the card and its samples, NAME.html the report, NAME.evaluation.json
    the figures. What cannot be measured is said, and the checkpoint stays: it took the longest.
    """
    checkpoint = checkpoints.load(path)
    settings = settings_of(config)
    try:
        found = evaluate(checkpoint, dataset, settings, say)
    except Exception as error:  # after hours of training nothing here may cost the checkpoint
        say(f"not evaluated: {error if isinstance(error, ValueError) else format_exc()}")
        return checkpoint
    if found.likelihoods.summary().converged:
        entry = quantiles_entry(checkpoint, found.likelihoods, settings.likelihood)
        checkpoint = store_quantiles(path, entry)
    else:
        say("no quantiles stored: evaluate.max_calls was too few for some held-out images")
    found.document["digest"] = checkpoint.digest
    _write(config, path, checkpoint, found, command, seconds, machine)
    return checkpoint


def settings_of(config: Config) -> Settings:
    """What a configuration's [evaluate] asks for."""
    section = config.evaluate
    cuda = config.train.device != "cpu" and torch.cuda.is_available()
    return Settings(
        likelihood=LikelihoodSettings(
            tolerance=section.tolerance, max_calls=section.max_calls, probes=section.probes
        ),
        images=section.images,
        samples=section.samples,
        sample_steps=section.sample_steps,
        features=section.features,
        device="cuda" if cuda else "cpu",
    )


def _write(
    config: Config,
    path: Path,
    checkpoint: Checkpoint,
    found: Evaluation,
    command: str,
    seconds: float,
    machine: str,
) -> None:
    name, spec = path.stem, checkpoint.description.data
    if found.samples is not None and found.labels is not None:
        rows, columns = report.grid_rows(found.labels, spec.classes, report.GRID)
        report.save_grid(path.with_suffix(".png"), spec, found.samples[rows], columns)
    text = report.card(
        name=name,
        command=command,
        checkpoint=checkpoint,
        config=config,
        seconds=seconds,
        machine=machine,
        found=found,
    )
    path.with_suffix(".md").write_text(text)
    document = {"checkpoint": name, "training_seconds": seconds, **found.document}
    path.with_name(f"{name}.evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    run = report_html.Run.of(path.parent)
    report_html.write(path.with_suffix(".html"), name, checkpoint, found, run)

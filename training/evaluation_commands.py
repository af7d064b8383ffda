"""`fokker evaluate` and `fokker features`; what they need is imported when they run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.data import Dataset, Split

Device = Annotated[str, typer.Option(help="As torch names it: cpu, cuda, cuda:1.")]


def register_evaluation(app: typer.Typer) -> None:
    """Add both."""
    app.command()(evaluate)
    app.command()(features)


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, *.safetensors.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="The training data where they are now: a folder, a zip, an array, or digits. "
            "Left out: where the checkpoint says."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", help="Other data, all of which stand in for the held-out images."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for NAME.evaluation.json and NAME.html; the checkpoint's."),
    ] = None,
    store: Annotated[
        bool,
        typer.Option(
            "--store",
            help="Write the quantiles of held-out bits/dim into the checkpoint, for the "
            "percentiles of /loglik. Its digest changes.",
        ),
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=2, help="Held-out images for likelihood and bound; all.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Samples to draw; 0 leaves out all that needs them.")
    ] = 1000,
    sample_steps: Annotated[int, typer.Option(min=2, help="DDPM steps of a sample.")] = 250,
    reference: Annotated[
        int, typer.Option(min=8, help="Training images that sets are compared with, at most.")
    ] = 10_000,
    feature: Annotated[
        str,
        typer.Option(
            "--features",
            help="What images are compared by: pixels, a file of `fokker features`, or "
            "inception:WEIGHTS (extra fid).",
        ),
    ] = "pixels",
    tolerance: Annotated[float, typer.Option(min=1e-8, help="Of the ODE's solver.")] = 1e-2,
    probes: Annotated[int, typer.Option(min=1, help="Rademacher probes an image.")] = 8,
    max_calls: Annotated[int, typer.Option(min=9, help="Network calls an image, at most.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of probes, noise and samples.")] = 0,
    device: Device = "cpu",
) -> None:
    """Measure a checkpoint: likelihood, evidence bound, distances of samples, memorisation.

    Prints the figures and writes them as JSON and as a report that is one HTML file. The loss curve
    is in it where the checkpoint lies beside a run's metrics.jsonl.
    """
    from rich.console import Console

    from model import checkpoint as checkpoints
    from training import report_html
    from training.evaluation.evaluate import Settings
    from training.evaluation.evaluate import evaluate as measure
    from training.evaluation.likelihood import (
        LikelihoodSettings,
        quantiles_entry,
        store_quantiles,
    )

    console = Console()
    folder = checkpoint.parent if out is None else out
    with _refusals("fokker evaluate"):
        if checkpoint.is_dir():
            raise ValueError(f"{checkpoint} is a folder; name the checkpoint in it")
        folder.mkdir(parents=True, exist_ok=True)
        loaded = checkpoints.load(checkpoint)
        dataset = _dataset(loaded.description.training, data, held_out)
        settings = Settings(
            likelihood=LikelihoodSettings(
                tolerance=tolerance, max_calls=max_calls, probes=probes, seed=seed
            ),
            images=images,
            samples=samples,
            sample_steps=sample_steps,
            reference=reference,
            features=feature,
            seed=seed,
            device=device,
        )
        if store:
            if held_out is not None:
                raise ValueError(
                    "--store keeps what the images held out of training cost: leave --held-out out"
                )
            _require_trained_on(loaded.description.training, dataset)
        found = measure(loaded, dataset, settings, _say(console))
        if store:
            entry = quantiles_entry(loaded, found.likelihoods, settings.likelihood)
            loaded = store_quantiles(checkpoint, entry)
            found.document["digest"] = loaded.digest
        name = checkpoint.stem
        document = {"checkpoint": name, **found.document}
        (folder / f"{name}.evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
        run = report_html.Run.of(checkpoint.parent)
        report_html.write(folder / f"{name}.html", name, loaded, found, run)
    lines = report_html.summary(found)
    width = max(len(title) for title, _ in lines)
    for title, value in lines:
        typer.echo(f"{title:<{width}}  {value}")
    if store:
        typer.echo(f"stored the quantiles of {len(found.likelihoods.finished)} held-out images")
        typer.echo(f"{checkpoint} is now {loaded.digest}")
    typer.echo(f"wrote {folder / name}.evaluation.json and {folder / name}.html")


def features(
    config: Annotated[Path, typer.Argument(help="TOML file of a training run; its [data] counts.")],
    out: Annotated[Path, typer.Option(help="File for the classifier, *.safetensors.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="data.key=value instead of the file's; may be repeated."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every image is seen.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of its weights and of the order.")] = 0,
    device: Device = "cpu",
) -> None:
    """Train a small classifier on the data's classes, by whose features samples are compared."""
    from rich.console import Console

    from training import data
    from training.config import Config
    from training.evaluation import classifier

    console = Console()
    with _refusals("fokker features"):
        dataset = data.read(Config.read(config, changes or []).data)
        settings = classifier.TrainingSettings(epochs=epochs, seed=seed)
        train, held_out = dataset.train, dataset.held_out

        def watch(epoch: int, loss: float) -> None:
            console.print(f"epoch {epoch} of {epochs}: loss {loss:.4f}")

        network = classifier.train(dataset.spec, train, settings, watch, device)
        known = classifier.accuracy(network, held_out)
        out.parent.mkdir(parents=True, exist_ok=True)
        notes = {
            "data": dataset.name,
            "data_fingerprint": dataset.fingerprint,
            "held_out_accuracy": known,
            "settings": dataclasses.asdict(settings),
        }
        classifier.save(out, network, notes)
    typer.echo(f"{out}: {known:.1%} of {len(held_out)} held-out images are given their class")


def _dataset(training: Mapping[str, Any], path: str | None, held_out: str | None) -> Dataset:
    """The data that a checkpoint was trained on, and what stands in for its held-out part."""
    from training import data
    from training.config import Config

    section = dict(training.get("config", {}).get("data", {}))
    if "source" in section:  # as the key was called at first
        section["path"] = section.pop("source")
    if path is not None:
        section["path"] = path
    if not section:
        raise ValueError("the checkpoint does not say what it was trained on; give --data")
    dataset = data.read(Config.of({"data": section}, "the data").data)
    if held_out is None:
        return dataset
    section["path"] = held_out
    other = data.read(Config.of({"data": section}, "the held-out data").data)
    if other.spec != dataset.spec:
        raise ValueError(f"{held_out} has other images or classes than {dataset.name}")
    return dataclasses.replace(dataset, held_out=_whole(other))


def _whole(dataset: Dataset) -> Split:
    """All images of a dataset."""
    import numpy as np
    import torch

    from training.data import Split

    first, second = dataset.train, dataset.held_out
    return Split(
        images=first.images,
        rows=np.concatenate((first.rows, second.rows)),
        labels=torch.cat((first.labels, second.labels)),
        files=[*first.files, *second.files],
    )


def _require_trained_on(training: Mapping[str, Any], dataset: Dataset) -> None:
    """Held-out images of other data may be among those that were trained on."""
    theirs = training.get("data_fingerprint")
    if theirs != dataset.fingerprint:
        raise ValueError(
            f"the checkpoint was trained on data of the fingerprint {theirs}, these have "
            f"{dataset.fingerprint}: what is held out of them may have been trained on. Give the "
            "training data with --data, or leave --store out"
        )


def _say(console: Any) -> Callable[[str], None]:
    return lambda words: console.print(f"… {words}", highlight=False)


@contextmanager
def _refusals(command: str) -> Iterator[None]:
    """Errors that are a user's to mend, as one line and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:  # of data, configurations, checkpoints and features
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(1) from error

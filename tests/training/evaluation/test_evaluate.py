"""A whole evaluation of an exact model on its own data: every comparison should come out even."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint
from training import report_html
from training.data import Dataset
from training.evaluation.evaluate import Evaluation, Settings, evaluate
from training.evaluation.likelihood import LikelihoodSettings
from training.report_html import Recorded, Run

SETTINGS = Settings(
    likelihood=LikelihoodSettings(tolerance=1e-2, probes=2),
    images=40,
    bound_draws=8,
    samples=200,
    sample_steps=120,
)


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, dataset: Dataset) -> Evaluation:
    return evaluate(checkpoint, dataset, SETTINGS)


def test_the_document_is_json_and_says_what_was_compared(found: Evaluation) -> None:
    document = json.loads(json.dumps(found.document, allow_nan=False))
    assert document["data"] == {
        "name": "mixture",
        "fingerprint": "sha256:of the mixture",
        "trained_on": True,
        "train_images": 600,
        "held_out_images": 200,
    }
    assert document["settings"]["sample_steps"] == 120
    assert document["samples"]["features"] == "pixels"
    assert document["samples"]["dimensions"] == 16
    assert len(document["elbo"]["curve"]["loss"]) == 8
    assert document["bits_per_dim_given_class"]["mean"] < document["bits_per_dim"]["mean"]


def test_an_exact_model_s_samples_are_like_its_data(found: Evaluation) -> None:
    samples = found.document["samples"]
    kid = samples["kid"]["samples"]
    assert abs(kid["value"]) < 4 * kid["standard_error"]
    equal = samples["frechet"]["of_equally_many"]
    assert equal["images"] == 200
    assert equal["samples"] == pytest.approx(equal["held_out"], rel=0.5)
    # Of 200 images each; ten sets of the mixture's own draws scatter by 0.04 and 0.025.
    for share in ("precision", "recall"):
        both = [samples["precision_recall"][of][share] for of in ("samples", "held_out")]
        assert abs(both[0] - both[1]) < 4 * 1.4 * 0.04
    assert abs(samples["memorisation"]["z"]) < 4
    assert samples["memorisation"]["copies"] == 0
    assert samples["class_accuracy"] == pytest.approx(samples["class_accuracy_held_out"], abs=0.1)


def test_samples_that_are_training_images_are_found_out(
    checkpoint: Checkpoint, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(checkpoint: Checkpoint, labels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        of_class = [
            [i for i, own in enumerate(dataset.train.labels.tolist()) if own == label]
            for label in (0, 1)
        ]
        rows = [of_class[label][i] for i, label in enumerate(labels.tolist())]
        return dataset.spec.to_model(dataset.train.levels[rows])

    monkeypatch.setattr("training.evaluation.sampling.draw", copied)
    settings = dataclasses.replace(SETTINGS, images=4, sample_steps=2)
    samples = evaluate(checkpoint, dataset, settings).document["samples"]
    assert samples["memorisation"]["copies"] == 200
    assert samples["memorisation"]["nearer"] == 1.0
    assert samples["class_accuracy"] > 0.95


def test_the_neighbours_shown_are_the_nearest_of_all_training_images(
    found: Evaluation, dataset: Dataset
) -> None:
    assert found.samples is not None
    assert found.strip is not None
    assert found.neighbours is not None
    assert found.neighbour_distances is not None
    train = dataset.train.levels.flatten(1)
    for i, x in enumerate(found.strip[:, -1]):
        levels = dataset.spec.to_levels(x).round().flatten()
        apart = (train - levels).norm(dim=1).sort()
        assert torch.equal(found.neighbours[i].flatten(1).double(), train[apart.indices[:3]])
        scaled = apart.values[:3] * 2 / dataset.spec.levels
        assert np.allclose(found.neighbour_distances[i], scaled.numpy())


def test_without_samples_there_are_likelihood_and_bound(
    checkpoint: Checkpoint, dataset: Dataset
) -> None:
    settings = dataclasses.replace(SETTINGS, samples=0, images=10)
    found = evaluate(checkpoint, dataset, settings)
    assert "samples" not in found.document
    assert found.document["bits_per_dim"]["images"] == 10
    assert "samples of their class" not in dict(report_html.summary(found))


def test_data_of_another_shape_are_refused(checkpoint: Checkpoint, dataset: Dataset) -> None:
    other = dataclasses.replace(dataset.spec, levels=17)
    with pytest.raises(ValueError, match="with 256 levels, the data mixture have"):
        evaluate(checkpoint, dataclasses.replace(dataset, spec=other), SETTINGS)


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link", "line", "rect", "polyline", "polygon"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path, checkpoint: Checkpoint, found: Evaluation) -> str:
    loss = Recorded(steps=list(range(1, 1001)), values=[1 / (1 + i) for i in range(1000)])
    held_out = Recorded(steps=[500, 1000], values=[7.5, 6.25])
    run = Run(loss=loss, held_out=held_out)
    report_html.write(tmp_path / "mixture.html", "mix<ture", checkpoint, found, run)
    return (tmp_path / "mixture.html").read_text()


def test_the_report_stands_alone(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.links
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert "url(" not in page
    assert "script" not in parsed.tags


def test_the_report_has_every_part(page: str, found: Evaluation) -> None:
    titles = (
        "Samples",
        "From noise to image",
        "Nearest training images",
        "Training loss",
        "Held-out images while training",
        "Loss by noise level",
        "Likelihood",
        "Distances",
    )
    for title in titles:
        assert f"<h2>{title}</h2>" in page
    assert page.count('class="chart"') == 4
    # A grid; of each of 8 samples its way in 10 pictures, itself, and 3 neighbours.
    assert page.count("data:image/png") == 1 + 8 * (10 + 1 + 3)
    bits = found.document["bits_per_dim"]
    assert f"<b>{bits['mean']:.3f} ± {bits['standard_error']:.3f}</b>" in page
    assert "<h1>mix&lt;ture</h1>" in page


def test_a_report_says_when_the_data_are_not_those_of_training(
    tmp_path: Path, checkpoint: Checkpoint, dataset: Dataset
) -> None:
    other = dataclasses.replace(dataset, fingerprint="sha256:other")
    found = evaluate(checkpoint, other, dataclasses.replace(SETTINGS, samples=0, images=4))
    report_html.write(tmp_path / "a.html", "a", checkpoint, found)
    page = (tmp_path / "a.html").read_text()
    assert "Not the data that the checkpoint was trained on" in page
    assert "<h2>Training loss</h2>" not in page


def test_what_a_run_has_written_is_read(tmp_path: Path) -> None:
    assert Run.of(tmp_path / "absent") == Run()
    lines = ('{"step": 1, "loss": 0.5}', '{"step": 1, "other": 3}', "", '{"step": 2, "loss": 1}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert Run.of(tmp_path) == Run(loss=Recorded(steps=[1, 2], values=[0.5, 1.0]))
    (tmp_path / "metrics.jsonl").write_text('{"other": 3}\n')
    (tmp_path / "held_out.jsonl").write_text('{"step": 5, "bits_per_dim": 4.5}\n')
    assert Run.of(tmp_path) == Run(held_out=Recorded(steps=[5], values=[4.5]))

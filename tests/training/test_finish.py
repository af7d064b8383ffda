"""What a run ends with, for an exact model and its data."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from model.quantiles import held_out_quantiles
from training import finish as module
from training.config import Config
from training.data import Dataset
from training.finish import finish, settings_of

CONFIG = Config.model_validate(
    {"evaluate": {"probes": 1, "images": 20, "samples": 40, "sample_steps": 5}}
)


@pytest.fixture
def path(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    path = tmp_path / "dots.safetensors"
    description = dataclasses.replace(
        checkpoint.description,
        training={
            "dataset": "mixture",
            "data_fingerprint": "sha256:of the mixture",
            "train_images": 600,
            "held_out_images": 200,
        },
    )
    checkpoints.save(path, description, checkpoint.network.state_dict())
    return path


def finished(path: Path, dataset: Dataset, config: Config = CONFIG) -> tuple[Checkpoint, list[str]]:
    said: list[str] = []
    about = {"command": "fokker train dots.toml", "seconds": 90.0, "machine": "a machine"}
    return finish(config, dataset, path, **about, say=said.append), said  # type: ignore[arg-type]


def test_card_grid_report_and_figures_name_the_checkpoint_as_it_is_then(
    path: Path, dataset: Dataset
) -> None:
    (path.parent / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    left, _ = finished(path, dataset)
    assert left.digest == checkpoints.digest(path)
    names = ["dots.evaluation.json", "dots.html", "dots.md", "dots.png", "dots.safetensors"]
    assert sorted(each.name for each in path.parent.iterdir()) == [*names, "metrics.jsonl"]
    assert json.loads((path.parent / names[0]).read_text())["digest"] == left.digest
    card = (path.parent / "dots.md").read_text()
    for words in (left.digest, "1.5 minutes on a machine", "over 20 of 200 held-out images"):
        assert words in card
    assert left.digest in (path.parent / "dots.html").read_text()


def test_the_checkpoint_knows_its_quantiles(path: Path, dataset: Dataset) -> None:
    left, _ = finished(path, dataset)
    known = held_out_quantiles(left.description.training, "bits_per_dim")
    assert known is not None
    entry = left.description.training["quantiles"]["bits_per_dim"]
    assert entry["images"] == 20
    assert entry["solver"]["tolerance"] == 1e-2


def test_without_all_integrals_there_are_no_quantiles_and_that_is_said(
    path: Path, dataset: Dataset
) -> None:
    few = CONFIG.model_copy(
        update={"evaluate": CONFIG.evaluate.model_copy(update={"max_calls": 9})}
    )
    before = checkpoints.digest(path)
    left, said = finished(path, dataset, few)
    assert left.digest == before == checkpoints.digest(path)
    assert any("evaluate.max_calls was too few" in words for words in said)
    assert "20 more not finished" in (path.parent / "dots.md").read_text()


def test_a_trained_checkpoint_survives_what_cannot_be_evaluated(
    path: Path, dataset: Dataset
) -> None:
    one = dataclasses.replace(
        dataset.held_out,
        rows=dataset.held_out.rows[:1],
        labels=dataset.held_out.labels[:1],
        files=dataset.held_out.files[:1],
    )
    before = path.read_bytes()
    _, said = finished(path, dataclasses.replace(dataset, held_out=one))
    assert path.read_bytes() == before
    assert said[-1].startswith("not evaluated: at least 2 images are needed")


def test_few_held_out_images_still_have_a_likelihood(path: Path, dataset: Dataset) -> None:
    rows = np.arange(3)
    few = dataclasses.replace(
        dataset.held_out,
        rows=dataset.held_out.rows[rows],
        labels=dataset.held_out.labels[:3],
        files=dataset.held_out.files[:3],
    )
    _, said = finished(path, dataclasses.replace(dataset, held_out=few))
    assert any("more than 3 of them and of held-out images are needed" in words for words in said)
    assert "held-out bits/dim" in (path.parent / "dots.md").read_text()


def test_a_gpu_is_used_where_training_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    assert settings_of(CONFIG).device == "cuda"
    slow = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"device": "cpu"})})
    assert settings_of(slow).device == "cpu"

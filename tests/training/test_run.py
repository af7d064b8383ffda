from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model import checkpoint as checkpoints
from training import loop
from training.config import Config
from training.data import Dataset, digits
from training.run import run

TINY = Config.model_validate(
    {
        "data": {"held_out": 0.02},
        "model": {"channels": [16, 16], "blocks": 1},
        "train": {"steps": 12, "batch_size": 16, "warmup_steps": 2},
        "process": {"name": "vp_linear", "t_min": 1e-3},
        "objective": {"time_sampling": "log_snr"},
        # Twelve steps leave a rough field: one that an accurate solver would take minutes for.
        "evaluate": {"tolerance": 0.1, "probes": 1, "max_calls": 40, "sample_steps": 10},
    }
)


def weights(config: Config, dataset: Dataset) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses: list[float] = []
    trained = loop.train(
        config,
        dataset,
        loop.make_process(config),
        loop.make_architecture(config.model, dataset),
        lambda progress: losses.append(progress.loss),
    )
    return trained, losses


def with_train(**changes: object) -> Config:
    return Config.model_validate(TINY.model_dump() | {"train": TINY.train.model_dump() | changes})


def test_a_run_leaves_a_checkpoint_a_card_and_a_grid(tmp_path: Path) -> None:
    trained = run(TINY, name="tiny", out=tmp_path, command="fokker train tiny.toml --out here")
    loaded = checkpoints.load(tmp_path / "tiny.safetensors")
    assert loaded.digest == trained.digest
    assert loaded.description.training["steps"] == 12
    assert loaded.description.data.levels == 17
    card = (tmp_path / "tiny.md").read_text()
    assert "fokker train tiny.toml --out here" in card
    assert "held-out bits/dim" in card
    assert loaded.digest in card
    with Image.open(tmp_path / "tiny.png") as grid:
        assert grid.size == ((10 * 9 - 1) * 6, (8 * 9 - 1) * 6)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 12


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    dataset = digits(0.02)
    first, second = weights(TINY, dataset)[0], weights(TINY, dataset)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights(with_train(seed=1), dataset)[0]
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss() -> None:
    losses = weights(with_train(steps=120), digits(0.02))[1]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step() -> None:
    wild = with_train(learning_rate=1e30, warmup_steps=0, steps=40)
    with pytest.raises(loop.TrainingDivergedError, match=r"at step \d+"):
        weights(wild, digits(0.02))


def test_a_checkpoint_file_holds_nothing_that_differs_between_equal_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(TINY, name="tiny", out=tmp_path / name, command="same")
    first, second = ((tmp_path / name / "tiny.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    assert load_file(tmp_path / "a" / "tiny.safetensors").keys()

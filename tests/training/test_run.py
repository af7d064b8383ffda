import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model import checkpoint as checkpoints
from tests.training import runs
from training import build
from training.config import Config, ConfigError
from training.data import digits
from training.evaluation.bound import bound
from training.folder import RunError
from training.parallel import World
from training.run import fit, run
from training.state import StateError
from training.trainer import Trainer

TINY = runs.config()


def test_a_run_leaves_a_checkpoint_a_card_and_a_grid(tmp_path: Path) -> None:
    trained = run(TINY, name="tiny", out=tmp_path, command="fokker train tiny.toml --out here")
    loaded = checkpoints.load(tmp_path / "tiny.safetensors")
    assert trained is not None
    assert loaded.digest == trained.digest
    assert loaded.description.training["steps"] == 12
    assert loaded.description.data.levels == 17
    card = (tmp_path / "tiny.md").read_text()
    assert "fokker train tiny.toml --out here" in card
    assert "held-out bits/dim" in card
    assert loaded.digest in card
    assert loaded.digest in (tmp_path / "tiny.html").read_text()
    assert "<h2>Training loss</h2>" in (tmp_path / "tiny.html").read_text()
    with Image.open(tmp_path / "tiny.png") as grid:
        assert grid.size == ((10 * 9 - 1) * 6, (8 * 9 - 1) * 6)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 12


def test_the_same_seed_gives_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        fit(runs.config(train={"seed": seed}), tmp_path / name)
    first, second, other = (runs.weights(tmp_path / name) for name in ("first", "second", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    fit(runs.config(train={"steps": 120}), tmp_path)
    losses = runs.losses(tmp_path)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_every_decay_s_average_is_kept_and_the_first_is_the_model(tmp_path: Path) -> None:
    config = runs.config(ema={"decay": [0.5, 0.9]})
    run(config, name="tiny", out=tmp_path, command="same")
    model = load_file(tmp_path / "tiny.safetensors")
    other = load_file(tmp_path / "ema" / "tiny-0.9.safetensors")
    state = runs.weights(tmp_path)
    for name, tensor in model.items():
        assert torch.equal(tensor, state[f"ema.0.5.{name}"])
        assert torch.equal(other[name], state[f"ema.0.9.{name}"])
    assert not torch.equal(model["stem.weight"], other["stem.weight"])
    described = checkpoints.load(tmp_path / "tiny.safetensors").description
    assert Config.model_validate(described.training["config"]) == config


def test_grids_of_samples_are_drawn_meanwhile(tmp_path: Path) -> None:
    fit(runs.config(train={"sample_every": 6}), tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-00000006.png", "step-00000012.png"]
    with Image.open(tmp_path / "samples" / names[0]) as grid:
        assert grid.size == (10 * 9 - 1, 4 * 9 - 1)


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    fit(runs.config(), tmp_path)
    with pytest.raises(StateError, match=r"at step 12 already, beyond train\.steps = 6"):
        fit(runs.config(train={"steps": 6}), tmp_path, resume=True)


def test_a_bound_on_held_out_images_is_taken_meanwhile(tmp_path: Path) -> None:
    def taken(out: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]

    constant = {"schedule": "constant", "held_out_every": 4, "checkpoint_every": 6}
    config = runs.config(train=constant | {"steps": 60})
    fit(config, tmp_path)
    found = taken(tmp_path)
    assert [line["step"] for line in found] == list(range(4, 61, 4))
    assert found[-1]["bits_per_dim"] < 0.8 * found[0]["bits_per_dim"]
    (tmp_path / "checkpoints" / "step-00000060.safetensors").unlink()
    cut = "".join(json.dumps(line) + "\n" for line in found[:13]) + '{"step": 54, "bi'
    (tmp_path / "held_out.jsonl").write_text(cut)
    fit(config, tmp_path, resume=True)  # from step 54
    assert taken(tmp_path) == found


def test_the_bound_taken_meanwhile_is_the_evaluation_s(tmp_path: Path) -> None:
    config = runs.config(train={"held_out_every": 12})
    made = run(config, name="tiny", out=tmp_path, command="same")
    assert made is not None
    held_out = digits(config.data.held_out).held_out
    wanted = bound(made, held_out.levels, draws=16, recon_draws=2).total.value
    (line,) = (tmp_path / "held_out.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 12, "bits_per_dim": pytest.approx(wanted, abs=1e-3)}


def test_what_is_shown_meanwhile_changes_nothing_of_the_run(tmp_path: Path) -> None:
    fit(runs.config(train={"sample_every": 3, "held_out_every": 2}), tmp_path / "drawn")
    fit(runs.config(), tmp_path / "not")
    drawn, plain = runs.weights(tmp_path / "drawn"), runs.weights(tmp_path / "not")
    assert all(torch.equal(drawn[name], plain[name]) for name in plain)


def test_channels_last_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for name, layout in (("last", True), ("first", False)):
        config = runs.config(train={"channels_last": layout}, model={"dropout": 0.0})
        fit(config, tmp_path / name)
    last, first = runs.losses(tmp_path / "last"), runs.losses(tmp_path / "first")
    assert last == pytest.approx(first, rel=1e-3)


def test_a_batch_that_does_not_split_is_refused() -> None:
    config = runs.config(train={"batch_size": 15, "accumulate": 5})
    dataset = digits(0.02)
    architecture = build.make_architecture(config.model, dataset.spec)
    two = World(rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"batch_size = 15 is no multiple of 10: 2 processes"):
        Trainer(config, dataset, build.make_process(config), architecture, two)


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=r"train\.device = 'cuda' needs a CUDA device"):
        fit(runs.config(train={"device": "cuda"}), tmp_path)


def test_a_run_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    fit(runs.config(), tmp_path)
    before = runs.weights(tmp_path)
    with pytest.raises(RunError, match="continue it with --resume"):
        fit(runs.config(train={"seed": 1}), tmp_path)
    after = runs.weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_may_be_made_longer(tmp_path: Path) -> None:
    constant = {"schedule": "constant"}
    fit(runs.config(train=constant), tmp_path / "longer")
    fit(runs.config(train=constant | {"steps": 20}), tmp_path / "longer", resume=True)
    fit(runs.config(train=constant | {"steps": 20}), tmp_path / "whole")
    longer, whole = runs.weights(tmp_path / "longer"), runs.weights(tmp_path / "whole")
    assert all(torch.equal(longer[name], whole[name]) for name in whole)


def test_a_checkpoint_file_holds_nothing_that_differs_between_equal_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(TINY, name="tiny", out=tmp_path / name, command="same")
    first, second = ((tmp_path / name / "tiny.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    assert load_file(tmp_path / "a" / "tiny.safetensors").keys()

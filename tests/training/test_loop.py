import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.training import runs
from training import run, state
from training.loop import Stopped, TrainingDivergedError
from training.state import StateError


def wait_for_steps(process: runs.Process, out: Path, steps: int) -> None:
    limit = time.monotonic() + 60
    while runs.steps_done(out) < steps:
        assert process.is_alive(), f"it ended by itself with {process.exitcode}"
        assert time.monotonic() < limit
        time.sleep(0.001)


LONG = runs.config(
    data={"flip": True},
    objective={"by_loss_history": True},
    train={"steps": 60, "checkpoint_every": 7},
    ema={"decay": [0.99, 0.9]},
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run.fit(LONG, out)
    return out


def require_equal(found: Path, wanted: Path) -> None:
    ours, theirs = runs.weights(found), runs.weights(wanted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert runs.losses(found) == runs.losses(wanted)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    for kill in range(2):
        process = runs.start(LONG, tmp_path)
        wait_for_steps(process, tmp_path, 25 * kill + chance.randrange(1, 25))
        process.kill()
        process.join()
    run.fit(LONG, tmp_path, resume=True)
    require_equal(tmp_path, undisturbed)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_ends(
    undisturbed: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    def stop() -> None:
        while runs.steps_done(tmp_path) < 10:
            time.sleep(0.001)
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match=r"stopped after step \d+; continue with --resume"):
        run.fit(LONG, tmp_path)
    saved = state.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert 10 <= state.load(saved).step == runs.steps_done(tmp_path) < 60
    run.fit(LONG, tmp_path, resume=True)
    require_equal(tmp_path, undisturbed)


def test_only_the_last_states_are_kept(undisturbed: Path) -> None:
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert names == ["step-00000056.safetensors", "step-00000060.safetensors"]


def test_two_processes_with_half_the_batch_each_are_as_good_as_one(tmp_path: Path) -> None:
    config = runs.config(
        data={"flip": True},
        objective={"by_loss_history": True},
        train={"steps": 25, "learning_rate": 3e-4, "batch_size": 32},
    )
    run.fit(config, tmp_path / "one")
    runs.finish(*runs.start_together(config, tmp_path / "two", 2))
    runs.require_close(tmp_path / "two", tmp_path / "one")


def test_parts_of_a_step_add_up_to_the_step(tmp_path: Path) -> None:
    whole = runs.config(train={"learning_rate": 3e-4})
    parts = runs.config(train={"learning_rate": 3e-4, "accumulate": 4})
    run.fit(whole, tmp_path / "whole")
    run.fit(parts, tmp_path / "parts")
    runs.require_close(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    run.fit(runs.config(), tmp_path / "begun")
    return tmp_path / "begun"


def test_a_loss_that_is_not_finite_stops_the_run_with_what_it_was_for(tmp_path: Path) -> None:
    good = runs.config(train={"schedule": "constant"})
    run.fit(good, tmp_path)
    tensors = dict(runs.weights(tmp_path))
    path = state.latest(tmp_path / "checkpoints")
    assert path is not None
    found = state.load(path)
    tensors["weights.head.bias"] = torch.full_like(tensors["weights.head.bias"], 3e38)
    state.save(
        tmp_path / "checkpoints",
        state.State(step=found.step, tensors=tensors, document=found.document),
        keep=2,
    )
    longer = runs.config(train={"schedule": "constant", "steps": 20})
    with pytest.raises(TrainingDivergedError) as stopped:
        run.fit(longer, tmp_path, resume=True)
    assert re.search(
        r"the loss is inf .* at step 13, for (\d{4}, ){7}\d{4} and 8 more", str(stopped.value)
    )
    assert "the last good state is " in str(stopped.value)
    assert "step-00000012.safetensors" in str(stopped.value)
    assert (tmp_path / "diverged.json").exists()


def test_a_state_of_another_shape_is_refused_by_the_tensor(begun: Path) -> None:
    path = state.latest(begun / "checkpoints")
    assert path is not None
    found = state.load(path)
    tensors = dict(found.tensors)
    tensors["weights.stem.weight"] = tensors["weights.stem.weight"][:8]
    state.save(
        begun / "checkpoints",
        state.State(step=found.step, tensors=tensors, document=found.document),
        keep=2,
    )
    with pytest.raises(StateError, match=r"another network .*'weights\.stem\.weight' has shape .8"):
        run.fit(runs.config(), begun, resume=True)


def test_other_data_are_refused(begun: Path) -> None:
    path = state.latest(begun / "checkpoints")
    assert path is not None
    found = state.load(path)
    document = dict(found.document) | {"data_fingerprint": "sha256:0"}
    other = state.State(step=found.step, tensors=found.tensors, document=document)
    state.save(begun / "checkpoints", other, keep=2)
    with pytest.raises(StateError, match=r"trained on other data .sha256:0. than data\.path"):
        run.fit(runs.config(), begun, resume=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_half_precision_lowers_the_loss(tmp_path: Path, precision: str) -> None:
    run.fit(runs.config(train={"steps": 40, "precision": precision}), tmp_path)
    found = runs.losses(tmp_path)
    assert sum(found[-10:]) < 0.9 * sum(found[:10])

from pathlib import Path

import pytest
import torch

import training
from model.data import DataSpec
from training import build
from training.config import Config, ConfigError
from training.data import digits

CONFIGS = Path(training.__file__).parent / "configs"
PICTURES = DataSpec(shape=(3, 32, 32), levels=256, class_names=("a", "b"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_the_configuration_for_pictures_is_readable_and_fits_them() -> None:
    config = Config.read(CONFIGS / "images.toml")
    assert build.make_architecture(config.model, PICTURES).classes == 2
    ends = torch.tensor([build.make_process(config).t_min], dtype=torch.float64)
    # The noise at t_min is finer than a level.
    assert float(build.make_process(config).sigma(ends)) < 2 / 256


def test_the_shipped_configuration_is_readable_and_fits_its_data() -> None:
    config = Config.read(CONFIGS / "digits.toml")
    assert build.make_process(config).t_min == 1e-3
    spec = digits(config.data.held_out).spec
    assert build.make_architecture(config.model, spec).classes == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3", r"train\.step: unknown key .did you mean train\.steps\?."),
        ("[data]\nbatch_size = 3", r"data\.batch_size: .*did you mean train\.batch_size\?"),
        ("[trian]\nsteps = 3", r"trian: unknown key; the sections are \[data\], \[model\]"),
        ("[train]\nbatch_size = 9\naccumulate = 2", "batch_size = 9 is no multiple of accumulate"),
        ("[ema]\ndecay = 1.5", r"ema\.decay"),
        ("[train]\nsteps = 0", r"train\.steps: .*greater than 0"),
        ("[objective]\ntime_sampling = 'sometimes'", r"objective\.time_sampling"),
        ("[train", "not TOML"),
    ],
)
def test_an_unusable_file_is_refused_by_the_key_that_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.read(write(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("model.channels=64", "model", "channels", (64,)),
        ("model.channels=[32, 64]", "model", "channels", (32, 64)),
        ("data.path=some folder/pictures", "data", "path", "some folder/pictures"),
        ("data.size=32", "data", "shape", (32, 32)),
        ("train.precision = bf16", "train", "precision", "bf16"),
        ("ema.decay=[0.99, 0.999, 0.99]", "ema", "decays", (0.99, 0.999)),
        ("process.t_min=1e-4", "process", "options", {"t_min": 1e-4}),
    ],
)
def test_a_key_can_be_set_beside_the_file(
    tmp_path: Path, change: str, section: str, key: str, value: object
) -> None:
    path = write(tmp_path, "[train]\nsteps = 7\n[data]\nflip = true")
    config = Config.read(path, [change])
    assert getattr(getattr(config, section), key) == value
    assert config.train.steps == 7
    assert config.data.flip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps=3", r"--set steps=3: write section\.key=value"),
        ("train.steps", r"write section\.key=value, .*did you mean train\.steps"),
        ("train.stps=3", r"--set train\.stps=3 cannot be used:\n.*did you mean train\.steps"),
        ("train.steps.more=3", r"train\.steps.*3: steps is no section|train\.steps"),
        ("train.steps=many", r"train\.steps: .*valid integer"),
        ("train.steps=true", r"train\.steps: .*true is no value of it"),
        ("train.learning_rate=inf", r"train\.learning_rate: .*finite number"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.read(write(tmp_path, "[train]\nsteps = 7"), [change])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml"):
        Config.read(tmp_path / "absent.toml")

from pathlib import Path

import pytest

import training
from training import loop
from training.config import Config, ConfigError
from training.data import digits

SHIPPED = Path(training.__file__).parent / "configs" / "digits.toml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_the_shipped_configuration_is_readable_and_fits_its_data() -> None:
    config = Config.read(SHIPPED)
    assert loop.make_process(config).t_min == 1e-3
    assert loop.make_architecture(config.model, digits(config.data.held_out)).classes == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 3", r"train\.step: Extra inputs"),
        ("[train]\nsteps = 0", r"train\.steps: .*greater than or equal to 1"),
        ("[objective]\ntime_sampling = 'sometimes'", r"objective\.time_sampling"),
        ("[train", "not TOML"),
    ],
)
def test_an_unusable_file_is_refused_by_the_key_that_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.read(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml"):
        Config.read(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"name": "vp_linaer"}, "none of"),
        ({"name": "vp_linear", "beta": 3.0}, "unexpected keyword"),
        ({"name": "vp_linear", "t_min": 2.0}, "t_min < t_max"),
    ],
)
def test_an_impossible_process_is_refused(process: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loop.make_process(Config.model_validate({"process": process}))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"channels": [50, 64]}, "multiple of groups"),
        ({"channels": [16, 16, 16, 16, 16]}, "multiples of 16"),
    ],
)
def test_an_architecture_that_does_not_fit_the_data_is_refused(
    section: dict[str, object], message: str
) -> None:
    config = Config.model_validate({"model": section})
    with pytest.raises(ConfigError, match=message):
        loop.make_architecture(config.model, digits(0.15))

import pytest

from model.data import DataSpec
from training import build
from training.config import Config, ConfigError

DIGITS = DataSpec(shape=(1, 8, 8), levels=17, class_names=tuple("0123456789"))


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ({"name": "vp_linaer"}, r"none of .*did you mean vp_linear\?"),
        ({"name": "vp_linear", "beta_mn": 3.0}, r"beta_mn: unknown key .did you mean beta_min\?"),
        ({"name": "vp_linear", "t_min": 2.0}, "t_min < t_max"),
    ],
)
def test_an_impossible_process_is_refused(process: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.make_process(Config.model_validate({"process": process}))


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
        build.make_architecture(config.model, DIGITS)


def rate(step: int, schedule: str) -> float:
    train = {"learning_rate": 2.0, "steps": 110, "warmup_steps": 10, "schedule": schedule}
    return build.learning_rate(step, Config.model_validate({"train": train}))


def test_the_rate_warms_up_and_falls_by_half_a_cosine() -> None:
    assert [rate(step, "cosine") for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert rate(60, "cosine") == pytest.approx(1.0)
    assert rate(109, "cosine") == pytest.approx(0.0, abs=1e-3)


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    assert [rate(step, "constant") for step in (0, 10, 109)] == pytest.approx([0.2, 2.0, 2.0])

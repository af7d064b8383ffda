from pathlib import Path

import pytest

from training import folder
from training.config import Config, ConfigError
from training.folder import RunError

CONFIG = Config()


def changed(section: str, **keys: object) -> Config:
    document = CONFIG.model_dump()
    document[section] |= keys
    return Config.model_validate(document)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    with folder.opened(tmp_path, CONFIG, resume=False):
        pass
    return tmp_path


def test_the_resolved_configuration_is_in_the_folder(begun: Path) -> None:
    assert Config.model_validate_json((begun / "config.json").read_text()) == CONFIG


def test_a_folder_with_a_run_is_refused_unless_it_is_continued(begun: Path) -> None:
    with (
        pytest.raises(RunError, match="has a run in it; continue it with --resume, or name an"),
        folder.opened(begun, CONFIG, resume=False),
    ):
        pass
    with folder.opened(begun, CONFIG, resume=True):
        pass


def test_a_run_is_continued_with_its_own_configuration_only(begun: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"(?s)another config.*train\.seed: 0 there, 1 here"),
        folder.opened(begun, changed("train", seed=1), resume=True),
    ):
        pass
    with folder.opened(begun, changed("train", steps=9000), resume=True):
        pass
    assert '"steps": 9000' in (begun / "config.json").read_text()


def test_every_key_that_may_change_is_one() -> None:
    from training.config import known_keys

    assert set(known_keys()) >= folder.FREE


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    with (
        folder.opened(tmp_path, CONFIG, resume=False),
        pytest.raises(RunError, match="another process is training in"),
        folder.opened(tmp_path, CONFIG, resume=True),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match=r"--out .*file/run: .*can be written to"),
        folder.opened(tmp_path / "file" / "run", CONFIG, resume=False),
    ):
        pass

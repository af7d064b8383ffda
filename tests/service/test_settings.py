import pytest
from pydantic import ValidationError

from service.settings import Settings, SettingsError


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOKKER_MAX_COUNT", "7")
    assert Settings().max_count == 7


def test_a_missing_redis_names_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FOKKER_REDIS_URL", raising=False)
    with pytest.raises(SettingsError, match="FOKKER_REDIS_URL"):
        Settings().require_redis()


def test_a_setting_out_of_range_is_refused_at_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOKKER_LEASE", "0")
    with pytest.raises(ValidationError, match="lease"):
        Settings()

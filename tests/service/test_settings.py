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


def test_a_redis_url_that_is_none_names_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOKKER_REDIS_URL", "nonsense")
    with pytest.raises(SettingsError, match=r"FOKKER_REDIS_URL .* redis://"):
        Settings().require_redis()


def test_a_setting_out_of_range_is_refused_at_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOKKER_LEASE", "0")
    with pytest.raises(ValidationError, match="lease"):
        Settings()


def test_an_error_names_the_variable_and_what_it_holds_unless_that_is_secret(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("FOKKER_LEASE", "-1")
    monkeypatch.setenv("FOKKER_SECRET", "hunter2")
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    said = str(refused.value)
    assert "FOKKER_LEASE: " in said
    assert "given '-1'" in said
    assert "FOKKER_SECRET: " in said
    assert "hunter2" not in said
    assert Settings.secrets() == {"api_keys", "secret", "webhook_secret"}


@pytest.mark.parametrize(
    ("name", "meant"), [("FOKKER_REDIS_ULR", "FOKKER_REDIS_URL"), ("FOKKER_PORTS", "FOKKER_PORT")]
)
def test_a_slip_of_the_pen_is_refused_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"{name} is no setting; {meant} is one"):
        Settings.load()


@pytest.mark.parametrize(
    "name", ["FOKKER_API_KEY", "FOKKER_URL", "FOKKER_API_PORT", "FOKKER_API_SERVICE_HOST"]
)
def test_what_the_client_reads_and_kubernetes_makes_is_let_be(
    monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    assert Settings.load() == Settings()

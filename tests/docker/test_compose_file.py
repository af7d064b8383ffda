"""docker-compose.yml and the images, as far as they can be judged without Docker."""

import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("redis", "api", "worker", "worker-gpu")
SETTINGS = {f"FOKKER_{name.upper()}" for name in Settings.model_fields}
NOT_OFFERED = {"FOKKER_NO_AUTH"}
"""Keys are asked for here, whatever stands in front."""


def _text(path: str) -> str:
    return (ROOT / path).read_text()


def _environment(name: str) -> dict[str, str | None]:
    found: dict[str, str | None] = SERVICES[name].get("environment", {})
    return found


def test_every_setting_is_known_and_every_known_setting_can_be_set():
    named = set(re.findall(r"\bFOKKER_\w+", TEXT))
    assert named - SETTINGS == set(), "docker-compose.yml names settings that nobody reads"
    given = set().union(*map(_environment, SERVICES))
    missing = SETTINGS - NOT_OFFERED - given
    assert missing == set(), "docker-compose.yml must hand these down, or NOT_OFFERED say why not"


def test_the_example_has_every_variable_and_no_other():
    example = (ROOT / ".env.example").read_text()
    offered = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)", TEXT)) | {"OMP_NUM_THREADS"}
    assert offered | {"FOKKER_LOG_FORMAT"} == used
    for name, default in re.findall(r"\$\{(\w+):-([^}]+)\}", TEXT):
        if name not in ("FOKKER_LOG_FORMAT", "KEYS_FILE", "GPU_DEVICE"):
            assert f"#{name}={default}\n" in example


def test_what_is_given_here_is_accepted_by_the_settings(monkeypatch: pytest.MonkeyPatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for service in ("api", "worker"):
        for name, value in _environment(service).items():
            if value is not None and name in SETTINGS:
                plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
                monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?[^}]*\}", "secret", plain))
    settings = Settings.load()
    assert settings.host == "0.0.0.0"
    assert settings.worker_metrics_port == 9100
    assert settings.require_redis() == "redis://:secret@redis:6379/0"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service
    assert service.get("user") != "root"


def test_redis_is_reached_by_containers_alone_and_with_a_password():
    redis = SERVICES["redis"]
    assert "ports" not in redis
    assert redis["networks"] == ["backend"]
    assert COMPOSE["networks"]["backend"]["internal"] is True
    assert redis["environment"]["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?")
    start = (ROOT / "docker" / "redis" / "start").read_text()
    for line in ("appendonly yes", "maxmemory-policy noeviction", "requirepass $REDIS_PASSWORD"):
        assert f"\n{line}\n" in start


def test_ports_are_published_on_loopback_unless_somebody_says_otherwise():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    for port in published:
        assert re.match(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+$", port)


@pytest.mark.parametrize("variable", ["FOKKER_API_KEYS", "REDIS_PASSWORD", "GRAFANA_PASSWORD"])
def test_what_is_missing_stops_up_with_the_command_that_makes_it(variable: str):
    messages = re.findall(rf"\$\{{{variable}:\?([^}}]*)\}}", TEXT)
    assert messages
    for message in messages:
        assert "docker/new-env OWNER" in message


def test_workers_have_time_to_hand_their_jobs_back():
    # Read, not imported: that would bring torch along.
    (deliveries,) = re.findall(r"^_GRACE = ([\d.]+)", _text("worker/main.py"), re.MULTILINE)
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= 2 * float(deliveries) + 10


def test_api_has_time_to_end_its_requests():
    from service.api.server import GRACE

    assert int(SERVICES["api"]["stop_grace_period"].removesuffix("s")) >= 2 * GRACE


@pytest.mark.parametrize("part", ["api", "worker", "redis"])
def test_an_image_is_not_root_s_and_says_how_it_is(part: str):
    text = (ROOT / "docker" / f"Dockerfile.{part}").read_text()
    last = text.split("\nFROM ")[-1]
    user = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert user
    assert user[-1].split(":")[0] not in ("root", "0")
    assert "HEALTHCHECK" in last
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in last
    assert SERVICES[part]["build"]["dockerfile"] == f"docker/Dockerfile.{part}"


@pytest.mark.parametrize("part", ["api", "worker"])
def test_every_install_is_pinned(part: str):
    text = (ROOT / "docker" / f"Dockerfile.{part}").read_text().replace("\\\n", " ")
    installs = re.findall(r"-m pip (?:--python \S+ )?install ([^&\n]*)", text)
    assert len(installs) >= 3
    for arguments in installs:
        assert "-c constraints.txt" in arguments or "--no-deps" in arguments
    base = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert base == ["python:3.11-slim-bookworm"] * 2


def test_new_env_writes_what_compose_needs_and_nothing_that_others_can_read(tmp_path: Path):
    (tmp_path / "docker").mkdir()
    script = tmp_path / "docker" / "new-env"
    script.write_bytes((ROOT / "docker" / "new-env").read_bytes())
    (tmp_path / ".env.example").write_bytes((ROOT / ".env.example").read_bytes())
    ran = subprocess.run(["sh", script, "anna"], capture_output=True, text=True, check=True)
    written = tmp_path / ".env"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    values = dict(re.findall(r"^(\w+)=(.+)$", written.read_text(), re.MULTILINE))
    assert set(values) == {"FOKKER_API_KEYS", "REDIS_PASSWORD", "GRAFANA_PASSWORD"}
    owner, key = values["FOKKER_API_KEYS"].split(":")
    assert (owner, key) == ("anna", ran.stdout.splitlines()[-1])
    assert len(set(values.values())) == 3
    for value in (values["REDIS_PASSWORD"], values["GRAFANA_PASSWORD"]):
        assert re.fullmatch(r"[0-9a-f]{64}", value)
    again = subprocess.run(["sh", script, "ben"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "left as it is" in again.stderr
    assert "anna" in written.read_text()


@pytest.mark.parametrize("owner", ["", "an na", "a:b"])
def test_new_env_refuses_owners_that_the_api_would(owner: str, tmp_path: Path):
    ran = subprocess.run(
        ["sh", ROOT / "docker" / "new-env", owner], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "usage" in ran.stderr

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from service.commands import register


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


def test_serve_without_a_redis_says_what_to_set(app: typer.Typer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FOKKER_REDIS_URL", raising=False)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "FOKKER_REDIS_URL" in result.stderr


def test_the_api_needs_no_torch():
    code = "import sys, service.api, service.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What schemathesis makes of the OpenAPI document, against a real API process: all its checks.

A thread stands for the worker and ends every job at once, so that events, results and artifacts are
there to be asked for.
"""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.jobs.redis_store import RedisWorkerStore
from service.settings import Settings
from tests.e2e.conftest import empty_database, start_api
from tests.e2e.running import Service
from tests.service.clients import draw
from tests.service.helpers import CARDS, ROOMS

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "fk_0123456789abcdef"


@pytest.fixture
def api(redis_server: str, tmp_path: Path) -> Iterator[Service]:
    """An API process that asks for keys, and someone who ends all jobs."""
    url, done = empty_database(redis_server, 3), threading.Event()
    worker = RedisWorkerStore(Settings(redis_url=url), "worker-1", lambda job_id: None)
    worker.announce(CARDS, ttl=3600)

    def serve() -> None:
        while not done.wait(0.02):
            while claim := worker.claim([card["digest"] for card in CARDS], ROOMS):
                draw(claim)

    thread = threading.Thread(target=serve)
    thread.start()
    settings = {"FOKKER_API_KEYS": f"tester:{KEY}", "FOKKER_MAX_WAIT": "1"}
    with ExitStack() as stack:
        yield start_api(stack, url, tmp_path, **settings)
        done.set()
        thread.join()
        worker.close()


def check(api: Service, *options: str) -> int:
    """Run schemathesis; how many cases it made, all of which passed."""
    script = Path(sys.executable).with_name("schemathesis")
    header = f"Authorization: Bearer {KEY}"
    url = f"{str(api.client.base_url).rstrip('/')}/openapi.json"
    command = [script, "--config-file", CONFIG, "run", url, "-H", header, "--no-color", *options]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=api.folder, check=False)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert " 500 " not in api.api.err.read_text()
    found = re.search(r"(\d+) generated, \1 passed", ran.stdout)
    assert found, ran.stdout[-3000:]
    return int(found[1])


def test_answers_are_those_of_the_document(api: Service) -> None:
    """A few of each operation; the slow test has the corners, and sequences of requests."""
    assert check(api, "--phases", "fuzzing", "--max-examples", "8", "--seed", "1") > 50


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_answers_are_those_of_the_document_for_whatever_is_asked(api: Service) -> None:
    cases = check(api, "--max-examples", "100")
    print(f"\n{cases} cases, all checks")
    assert cases >= 2000

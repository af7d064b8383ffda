"""Log lines: what they are about, and what they never hold."""

import json
import logging
import warnings
from collections.abc import Iterator

import httpx
import pytest
from structlog.contextvars import bound_contextvars

from service.api import create_app
from service.jobs.lease import WorkerStore
from service.logs import configure
from service.settings import Settings
from tests.service.helpers import CARDS
from tests.service.network import served


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_says_what_it_is_about(capsys: pytest.CaptureFixture[str]):
    configure(Settings(log_format="json"))
    with bound_contextvars(request_id="r1"):
        logging.getLogger("worker.engine").warning("left %d", 3, extra={"job_id": "j1"})
    logging.getLogger("worker.engine").debug("not this one")
    (line,) = lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "event": "left 3",
        "level": "warning",
        "logger": "worker.engine",
        "job_id": "j1",
        "request_id": "r1",
    }


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]):
    configure(Settings(log_format="json"))
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        logging.getLogger("x").error("failed", exc_info=error)
    (line,) = lines(capsys)
    assert "ValueError: what went wrong" in str(line["exception"])


def test_the_access_log_keeps_no_signature(capsys: pytest.CaptureFixture[str]):
    configure(Settings(log_format="json"))
    path = "/jobs/x/events?expires=1&signature=SeCrEt"
    logging.getLogger("uvicorn.access").info('%s - "GET %s HTTP/%s" %d', "::1", path, "1.1", 200)
    (line,) = lines(capsys)
    assert line["event"] == '::1 - "GET /jobs/x/events?expires=1&signature=… HTTP/1.1" 200'


def test_a_warning_is_a_line_like_any_other(capsys: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(Settings(log_format="json"))
        warnings.warn("somebody's", UserWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert line["logger"] == "py.warnings"
    assert "UserWarning: somebody's" in str(line["event"])


def test_lines_for_people_have_the_same(capsys: pytest.CaptureFixture[str]):
    configure(Settings())
    logging.getLogger("x").warning("look", extra={"job_id": "j1"})
    said = capsys.readouterr().err
    assert "look" in said
    assert "job_id=j1" in said


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["mine-1", "", "not one", "x" * 65])
async def test_a_request_keeps_its_name_or_gets_one(client: httpx.AsyncClient, given: str):
    answer = await client.get("/healthz", headers={"X-Request-ID": given})
    name = answer.headers["X-Request-ID"]
    assert (name == given) == (given == "mine-1")
    assert 1 <= len(name) <= 64


@pytest.mark.anyio
async def test_access_lines_name_the_job_that_the_path_or_the_answer_is_about(
    settings: Settings, worker: WorkerStore, capsys: pytest.CaptureFixture[str]
):
    worker.announce(CARDS, ttl=60)
    configure(settings.model_copy(update={"log_format": "json"}))
    with served(create_app(settings), log_config=None, log_level="info") as url:
        async with httpx.AsyncClient(base_url=url) as client:
            job_id = (await client.post("/generate", json={"model": "digits"})).json()["id"]
            await client.get(f"/jobs/{job_id}/events?signature=x")
            await client.get("/jobs/no%20id")
    about = {
        str(line["event"]).split('"')[1]: line.get("job_id")
        for line in lines(capsys)
        if line["logger"] == "uvicorn.access"
    }
    assert about == {
        "POST /generate HTTP/1.1": job_id,
        f"GET /jobs/{job_id}/events?signature=… HTTP/1.1": job_id,
        "GET /jobs/no%20id HTTP/1.1": None,
    }

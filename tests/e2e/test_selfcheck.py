"""`fokker selfcheck`: right services pass, and what alters an answer is found."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.jobs.arrays import pack, unpack
from service.selfcheck import CHECKS, Report, mixture, reach, run
from tests.e2e.running import JOB_LIMIT, Part, Service
from tests.service.network import served


def selfcheck(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as it ended."""
    settings = {name for name in os.environ if name.startswith("FOKKER_")}
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(
        [sys.executable, "-P", "-m", "service", "selfcheck", *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=2 * JOB_LIMIT,
    )


@pytest.mark.timeout(300)
def test_a_service_as_it_should_be_passes(service: Service) -> None:
    ended = selfcheck("--json", FOKKER_URL=str(service.client.base_url))
    document = json.loads(ended.stdout)
    wrong = [f for check in document["checks"] for f in check["findings"] if not f["passed"]]
    assert (ended.returncode, document["passed"], wrong) == (0, True, [])
    assert [check["check"] for check in document["checks"]] == list(CHECKS)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_without_a_url_it_starts_a_service_of_its_own(tmp_path: Path) -> None:
    ended = selfcheck()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "comparisons are right" in ended.stderr
    assert "WRONG" not in ended.stdout


Alter = Callable[[str, Response], None]
"""Changes an answer to a request of this path."""


@dataclass
class Proxy:
    """Hands requests on to a service, and its answers back, altered."""

    target: str
    alter: Alter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        async with httpx.AsyncClient(base_url=self.target, timeout=60, trust_env=False) as client:
            headers = {k: v for k, v in request.headers.items() if k not in ("host", "connection")}
            url = str(request.url).removeprefix(str(request.base_url)[:-1])
            body = await request.body()
            got = await client.request(request.method, url, headers=headers, content=body)
        kept = {k: v for k, v in got.headers.items() if k not in ("content-length", "date")}
        answer = Response(got.content, got.status_code, kept)
        self.alter(request.url.path, answer)
        answer.headers["content-length"] = str(len(answer.body))
        await answer(scope, receive, send)


@pytest.fixture
def check_altered(service: Service) -> Callable[[str, Alter], Report]:
    """`check_altered(name, alter)`: run one check against the service behind a proxy."""

    def check(name: str, alter: Alter) -> Report:
        proxy = Proxy(str(service.client.base_url), alter)
        with served(proxy) as url, reach(url, "") as deployment:
            return run(name, deployment)

    return check


def as_json(change: Callable[[dict[str, Any]], None]) -> Alter:
    """Alters the documents of finished jobs."""

    def alter(path: str, answer: Response) -> None:
        if answer.headers.get("content-type") == "application/json":
            document = json.loads(answer.body)
            if document.get("result"):
                change(document)
                answer.body = json.dumps(document).encode()

    return alter


def as_array(change: Callable[[np.ndarray], np.ndarray]) -> Alter:
    """Alters the images of .npy artifacts."""

    def alter(path: str, answer: Response) -> None:
        if path.endswith(".npy"):
            stream = io.BytesIO()
            np.save(stream, change(np.load(io.BytesIO(bytes(answer.body)))))
            answer.body = stream.getvalue()

    return alter


def add_to_likelihoods(document: dict[str, Any]) -> None:
    for image in document["result"]["images"]:
        image["log_likelihood"] += 0.01
        image["volume"] += 0.01


def repeat_a_preview(path: str, answer: Response) -> None:
    if path.endswith("/events"):
        events = bytes(answer.body).split(b"event: ")
        previews = [i for i, event in enumerate(events) if event.startswith(b"preview")]
        events.insert(previews[0], events[previews[0]])
        answer.body = b"event: ".join(events)


def allow_everything(path: str, answer: Response) -> None:
    if answer.status_code == httpx.codes.FORBIDDEN:
        answer.status_code = httpx.codes.OK


def name_no_field(path: str, answer: Response) -> None:
    if answer.headers["content-type"] == "application/problem+json":
        document = json.loads(answer.body) | {"errors": []}
        answer.body = json.dumps(document).encode()


def leave(path: str, answer: Response) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("name", "alter"),
    [
        ("likelihood", as_json(add_to_likelihoods)),
        pytest.param("decode", as_array(lambda levels: levels + 0.01), marks=pytest.mark.slow),
        pytest.param("samplers", as_array(lambda x: x[:, :, ::-1]), marks=pytest.mark.slow),
        ("events", repeat_a_preview),
        ("links", allow_everything),
        ("refusals", name_no_field),
    ],
)
def test_an_altered_answer_is_found(
    check_altered: Callable[[str, Alter], Report], name: str, alter: Alter
) -> None:
    assert not check_altered(name, alter).passed
    assert check_altered(name, leave).passed  # what was found is not the proxy itself


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_of_another_mixture_is_found(
    own_service: tuple[Service, Callable[..., Part]], tmp_path: Path
) -> None:
    service, start_worker = own_service
    folder = tmp_path / "models"
    folder.mkdir()
    arrays, metadata = unpack(mixture.checkpoint())
    other = pack({"means": 0.98 * arrays["means"]}, metadata)
    (folder / "analytic.safetensors").write_bytes(other)
    start_worker(FOKKER_MODELS=str(folder))
    ended = selfcheck("--json", "--url", str(service.client.base_url))
    assert ended.returncode == 1
    wrong = [c["check"] for c in json.loads(ended.stdout)["checks"] if not c["passed"]]
    assert {"encode", "decode", "likelihood"} <= set(wrong)
    assert not {"health", "events", "links", "refusals"} & set(wrong)  # its card is the same

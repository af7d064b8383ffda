"""Both clients against the real API on a real port; what a worker would answer is put by hand."""

import base64
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response

from service.api import create_app
from service.client import (
    AsyncClient,
    Client,
    Event,
    Generated,
    InvalidInput,
    JobCanceled,
    JobFailed,
    RequestRefused,
    ServiceUnavailable,
)
from service.jobs.arrays import pack, unpack
from service.jobs.lease import Claim, WorkerStore
from service.settings import Settings
from tests.service.helpers import CARDS, LIMIT, until
from tests.service.network import Gate, document, line_to, served
from tests.service.uploads import GREY, latents, npy, png

Serve = Callable[[Callable[[Claim], None]], None]
KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def gate(settings: Settings, worker: WorkerStore) -> Gate:
    worker.announce(CARDS, ttl=60)
    return Gate(create_app(settings))


@pytest.fixture
def url(gate: Gate) -> Iterator[str]:
    with served(gate) as url:
        yield url


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.retries.FIRST_PAUSE", 0.02)


class Blocking:
    """A client, called from where nothing else runs."""

    def __init__(self, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        self.client = stack.enter_context(Client(*args, **kwargs))

    def __call__(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self.client, method)(*args, **kwargs)
        return list(answer) if method in ("events", "jobs") else answer


class Looping:
    """An asynchronous client, called the same way, over a loop in a thread of its own."""

    def __init__(self, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        self.portal = stack.enter_context(anyio.from_thread.start_blocking_portal())

        async def connect() -> AsyncClient:
            return AsyncClient(*args, **kwargs)

        self.client = self.portal.call(connect)
        stack.callback(lambda: self.portal.call(self.client.aclose))

    def __call__(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        call = partial(getattr(self.client, method), *args, **kwargs)

        async def listed() -> list[Any]:
            async with aclosing(call()) as answers:
                return [answer async for answer in answers]

        return self.portal.call(listed if method in ("events", "jobs") else call)


Connect = Callable[..., Blocking | Looping]


@pytest.fixture(params=[Blocking, Looping], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """`connect(url, …)`: a client, called as `client("generate", …)`."""
    with ExitStack() as stack:
        yield partial(request.param, stack)


def test_the_client_needs_neither_torch_nor_the_server():
    code = (
        "import sys, service.client; heavy = {'torch', 'fastapi', 'starlette', 'redis', 'celery', "
        "'kombu', 'uvicorn'}; sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def draw(claim: Claim) -> None:
    """What a worker answers to a request for two pictures."""
    entries = []
    for index in range(2):
        claim.put_artifact(f"{index}.png", "image/png", png(GREY + index))
        entries.append({"index": index, "seed": 40 + index, "nfe": 50, "artifact": f"{index}.png"})
    claim.succeed({"images": entries, "grid": "grid.png"})


def test_generate_gives_pictures_pixels_and_seeds(url: str, connect: Connect, serve_one: Serve):
    serve_one(draw)
    drawn = connect(url)("generate", "digits", count=2, seed=7, sampler="ddim", class_label=3)
    assert isinstance(drawn, Generated)
    assert [image.size for image in drawn.images] == [(8, 8), (8, 8)]
    np.testing.assert_array_equal(drawn.array, np.stack([GREY, GREY + 1])[..., None])
    assert (drawn.seeds, drawn.nfe.tolist()) == ((40, 41), [50, 50])
    assert drawn.job.parameters["sampler"]["name"] == "ddim"
    assert drawn.job.parameters["class_label"] == 3
    assert drawn.job.document["result"]["grid"] == "grid.png"


def test_images_asked_for_as_npy_come_in_levels_with_channels_last(
    url: str, connect: Connect, serve_one: Serve
):
    levels = np.random.default_rng(0).uniform(0, 255, (2, 3, 6, 5))

    def work(claim: Claim) -> None:
        claim.put_artifact("images.npy", "application/x-npy", npy(levels))
        entry = {"seed": 1, "nfe": 9, "artifact": "images.npy"}
        claim.succeed({"images": [entry | {"index": index} for index in range(2)], "grid": None})

    serve_one(work)
    drawn = connect(url)("generate", "faces", count=2, format="npy")
    np.testing.assert_array_equal(drawn.array, np.moveaxis(levels, 1, -1))
    assert drawn.images == ()


def encode(claim: Claim) -> None:
    """What a worker answers to a request to encode one image, whose trip back it did not end."""
    file = latents(1, companion=np.full((1, 1, 8, 8), 2.0))
    claim.put_artifact("latents.safetensors", "application/vnd.safetensors", file)
    entry = {
        "index": 0,
        "latent": {"artifact": "latents.safetensors", "index": 0},
        "round_trip_rmse": 0.25,
        "round_trip_max_error": None,
        "norm_ratio": 1.5,
        "nfe": 12,
        "converged": False,
    }
    claim.succeed({"images": [entry]})


def test_invert_sends_arrays_in_levels_and_gives_latents(
    url: str, connect: Connect, serve_one: Serve
):
    sent = np.random.default_rng(0).uniform(0, 16, (1, 8, 8))
    received: list[bytes | None] = []

    def work(claim: Claim) -> None:
        received.append(claim.inputs())
        encode(claim)

    serve_one(work)
    inverted = connect(url)("invert", sent, model="digits", solver={"name": "heun", "steps": 6})
    np.testing.assert_array_equal(unpack(received[0] or b"")[0]["levels"][:, 0], sent)
    assert inverted.job.parameters["solver"] == {"name": "heun", "steps": 6, "grid": "log_snr"}
    assert inverted.latents.shape == (1, 1, 8, 8)
    assert inverted.companion is not None
    assert inverted.companion.max() == 2.0
    assert inverted.round_trip_rmse.tolist() == [0.25]
    assert np.isnan(inverted.round_trip_max_error[0])
    assert (inverted.nfe.tolist(), inverted.converged.tolist()) == ([12], [False])


def test_latents_are_decoded_by_the_solver_that_encoded_them(
    url: str, connect: Connect, serve_one: Serve
):
    client = connect(url)
    serve_one(encode)
    inverted = client("invert", [png()], model="digits", solver={"name": "rk4", "steps": 3})
    request = {"model": "digits"}
    job = client("submit", "generate", request, latents=inverted)
    solver = {"name": "rk4", "steps": 3, "grid": "log_snr"}
    assert job.parameters["sampler"] == {"name": "pf_ode", "solver": solver}
    assert job.parameters["init"]["latents"]["job"] == inverted.job.id
    for source in (inverted.job, inverted.job.id):
        job = client("submit", "generate", request, latents=source)
        assert job.parameters["init"] == {
            "latents": {"job": inverted.job.id, "name": "latents.safetensors", "index": None}
        }


@pytest.mark.parametrize("form", ["array", "bytes", "path"])
def test_edited_latents_go_back_in(url: str, tmp_path: Path, worker: WorkerStore, form: str):
    edited = np.random.default_rng(0).normal(size=(3, 1, 8, 8))
    file = tmp_path / "edited.safetensors"
    file.write_bytes(pack({"latents": edited}))
    source: Any = {"array": edited, "bytes": file.read_bytes(), "path": file}[form]
    with Client(url) as client:
        job = client.submit("generate", {"model": "digits"}, latents=source)
    np.testing.assert_array_equal(unpack(worker.inputs(job.id) or b"")[0]["latents"], edited)
    assert job.parameters["count"] == 3


def test_every_form_of_an_image_means_the_same(url: str, tmp_path: Path, worker: WorkerStore):
    file = tmp_path / "digit.png"
    file.write_bytes(png())
    in_levels = np.round(GREY / 255 * 16)
    forms: list[Any] = [file, str(file), png(), Image.fromarray(GREY)]
    with Client(url) as client:
        alone = [client.submit("invert", {"model": "digits"}, images=form) for form in forms]
        alone.append(client.submit("invert", {"model": "digits"}, images=in_levels[None]))
        together = client.submit("invert", {"model": "digits"}, images=[*forms[2:], in_levels])
    for job in alone:
        levels = unpack(worker.inputs(job.id) or b"")[0]["levels"]
        np.testing.assert_array_equal(levels[:, 0], in_levels[None])
    levels = unpack(worker.inputs(together.id) or b"")[0]["levels"]
    np.testing.assert_array_equal(levels[:, 0], np.stack([in_levels] * 3))


@pytest.mark.parametrize(
    ("images", "said"),
    [(GREY, "first axis"), ([Image.new("CMYK", (8, 8))], "images[0]: cannot write mode CMYK")],
)
def test_images_that_cannot_be_sent_are_refused_before_anything_is_sent(
    url: str, gate: Gate, connect: Connect, images: Any, said: str
):
    with pytest.raises(InvalidInput) as refused:
        connect(url)("invert", images, model="digits")
    assert said in str(refused.value)
    assert gate.seen == []


def likelihoods(claim: Claim) -> None:
    common = {"nfe": 56, "t_min": 0.001, "converged": True, "discretization_error": 0.5}
    errors = {"probe": 2.5, "dequantization": None}
    values = {"log_likelihood": 57.5, "bits_per_dim": 1.75, "prior": -84.5, "volume": 142.0}
    none = dict.fromkeys(values) | {"converged": False, "discretization_error": None}
    entries = [common | values, common | none]
    claim.succeed({"images": [entry | {"standard_error": errors} for entry in entries]})


def test_loglik_gives_figures_with_their_errors(url: str, connect: Connect, serve_one: Serve):
    serve_one(likelihoods)
    found = connect(url)("loglik", [png(), png()], model="digits", dequantization=None, seed=1)
    assert found.job.parameters["dequantization"] is None
    np.testing.assert_array_equal(found.log_likelihood, [57.5, np.nan])
    np.testing.assert_array_equal(found.bits_per_dim, [1.75, np.nan])
    np.testing.assert_array_equal(found.terms["prior"], [-84.5, np.nan])
    np.testing.assert_array_equal(found.terms["volume"], [142.0, np.nan])
    np.testing.assert_array_equal(found.standard_error["probe"], [2.5, 2.5])
    np.testing.assert_array_equal(found.standard_error["dequantization"], [np.nan, np.nan])
    np.testing.assert_array_equal(found.discretization_error, [0.5, np.nan])
    assert found.converged.tolist() == [True, False]


def test_the_bound_comes_term_by_term(url: str, connect: Connect, serve_one: Serve):
    entry = {
        "log_likelihood": -9.0,
        "bits_per_dim": 0.2,
        "terms": {"prior": 1.0, "diffusion": 5.0, "recon": 3.0},
        "standard_error": {"diffusion": 0.5, "recon": 0.25},
        "nfe": 72,
    }
    serve_one(lambda claim: claim.succeed({"images": [entry]}))
    found = connect(url)("loglik", [png()], model="digits", method="elbo")
    assert {name: values.tolist() for name, values in found.terms.items()} == {
        "prior": [1.0],
        "diffusion": [5.0],
        "recon": [3.0],
    }
    assert set(found.standard_error) == {"diffusion", "recon"}
    assert found.converged.tolist() == [True]


def test_a_refused_request_names_its_fields(url: str, connect: Connect):
    with pytest.raises(RequestRefused) as refused:
        connect(url)("generate", "digits", class_label=11)
    assert (refused.value.status, refused.value.title) == (422, "Unprocessable Entity")
    assert refused.value.errors[0]["field"] == "class_label"
    assert "classes 0..9" in str(refused.value)
    assert refused.value.problem["instance"] == "/generate"


@pytest.mark.parametrize("method", ["job", "cancel", "events"])
def test_a_job_that_is_not_there_is_a_refusal(url: str, connect: Connect, method: str):
    with pytest.raises(RequestRefused, match="no job nobody") as refused:
        connect(url)(method, "nobody")
    assert refused.value.status == 404


def test_a_failed_job_is_raised_with_its_reason(url: str, connect: Connect, serve_one: Serve):
    error = {"type": "about:blank", "title": "Failed", "detail": "out of memory"}
    serve_one(lambda claim: claim.fail(error))
    with pytest.raises(JobFailed, match="out of memory") as failed:
        connect(url)("generate", "digits")
    assert failed.value.job.error == error
    assert failed.value.job.id in str(failed.value)


def test_a_job_past_its_deadline_is_raised_as_canceled(url: str, connect: Connect):
    with pytest.raises(JobCanceled, match="later one") as aborted:
        connect(url)("generate", "digits", deadline=0.05)
    assert aborted.value.job.status == "aborted"


def test_a_canceled_job_has_no_result(url: str, connect: Connect):
    client = connect(url)
    job = client("submit", "generate", {"model": "digits"}, deadline="1h")
    assert client("cancel", job).status == "canceled"
    with pytest.raises(JobCanceled, match="on request"):
        client("result", job.id)


class Stopped(Exception):  # noqa: N818
    """Whatever ends a wait but its job."""


def test_a_wait_that_is_interrupted_cancels_its_job(url: str, gate: Gate, connect: Connect):
    def stop(event: Event) -> None:
        raise Stopped

    client = connect(url)
    with pytest.raises(Stopped):
        client("generate", "digits", on_event=stop)
    asked = [request.path for request in gate.seen if request.path.endswith("/cancel")]
    assert len(asked) == 1
    assert client("job", asked[0].split("/")[2]).status == "canceled"


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_cancels_its_job(url: str, gate: Gate):
    async with AsyncClient(url) as client:
        with anyio.move_on_after(LIMIT) as scope:
            await client.generate("digits", on_event=lambda event: scope.cancel())
        assert scope.cancelled_caught
        path = gate.seen[-1].path
        assert path.endswith("/cancel")
        assert (await client.job(path.split("/")[2])).status == "canceled"


def test_a_stream_that_breaks_is_resumed_where_it_was(
    url: str, gate: Gate, connect: Connect, serve_one: Serve
):
    claims: list[Claim] = []
    serve_one(claims.append)
    with line_to(url) as line:
        client = connect(line.url)
        job = client("submit", "generate", {"model": "digits"})
        claim = until(lambda: claims)[0]
        seen: list[Event] = []

        def go_on(event: Event) -> None:
            seen.append(event)
            match event.type, event.data.get("calls"):
                case "started", _:
                    claim.event("step", {"calls": 1, "progress": 0.1})
                case "step", 1:
                    line.cut()
                    claim.event("step", {"calls": 2, "progress": 0.2})
                case "step", 2:
                    line.cut()
                    claim.succeed({})

        ended = client("wait", job, on_event=go_on)
    assert ended.status == "succeeded"
    assert [event.type for event in seen] == ["queued", "started", "step", "step", "succeeded"]
    assert [event.progress for event in seen[2:4]] == [0.1, 0.2]
    resumed = gate.headers("GET", f"/jobs/{job.id}/events", "Last-Event-ID")
    assert resumed == [None, seen[2].id, seen[3].id]


def test_a_stream_that_breaks_again_and_again_is_given_up(url: str, gate: Gate, connect: Connect):
    with line_to(url) as line:
        client = connect(line.url, retries=2)
        job = client("submit", "generate", {"model": "digits"})
        line.cut()
        line.swallowed = 9
        with pytest.raises(ServiceUnavailable, match=f"GET /jobs/{job.id}/events"):
            client("wait", job)
    assert len(gate.headers("GET", f"/jobs/{job.id}/events", "Accept")) == 3


def test_events_go_on_from_behind_any_one_of_them(url: str, connect: Connect, serve_one: Serve):
    client = connect(url)
    picture = base64.b64encode(png()).decode()

    def work(claim: Claim) -> None:
        claim.event("preview", {"calls": 5, "images": [{"index": 3, "png": picture}]})
        claim.succeed({})

    serve_one(work)
    job = client("submit", "generate", {"model": "digits"})
    events = client("events", job)
    assert [event.type for event in events] == ["queued", "started", "preview", "succeeded"]
    previews = events[2].previews()
    np.testing.assert_array_equal(np.asarray(previews.pop(3)), GREY)
    assert previews == events[1].previews() == {}
    assert client("events", job, after=events[1].id) == events[2:]
    assert client("events", job, after=events[3].id) == []


def test_retry_after_is_waited_for_in_seconds_and_to_a_date(url: str, gate: Gate, connect: Connect):
    client = connect(url)
    then = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    gate.answers = [
        document({"detail": "full"}, 503, **{"Retry-After": "1"}),
        document({"detail": "too fast"}, 429, **{"Retry-After": format_datetime(then, True)}),
    ]
    client("submit", "generate", {"model": "digits"})
    first, second, _ = (request.time for request in gate.seen)
    assert second - first >= 1.0
    assert datetime.now(UTC) >= then


def test_a_service_that_asks_for_more_patience_than_there_is_is_given_up_at_once(
    url: str, gate: Gate, connect: Connect
):
    full = {"title": "Service Unavailable", "status": 503, "detail": "the queue is full"}
    gate.answers = [document(full, 503, **{"Retry-After": "3600"})]
    with pytest.raises(ServiceUnavailable, match="queue is full") as away:
        connect(url)("submit", "generate", {"model": "digits"})
    assert (away.value.status, away.value.retry_after) == (503, 3600.0)
    assert len(gate.seen) == 1


def test_as_many_retries_are_made_as_were_asked_for(url: str, gate: Gate, connect: Connect):
    gate.answers = [document({}, 503) for _ in range(9)]
    with pytest.raises(ServiceUnavailable):
        connect(url, retries=3)("models")
    assert len(gate.seen) == 4


def test_one_idempotency_key_goes_with_all_tries_of_a_submission(
    url: str, gate: Gate, connect: Connect
):
    with line_to(url) as line:
        line.swallowed = 2
        client = connect(line.url)
        client("submit", "generate", {"model": "digits"})
        client("submit", "invert", {"model": "digits"}, images=[png()])
    drawn = gate.headers("POST", "/generate", "Idempotency-Key")
    encoded = gate.headers("POST", "/invert", "Idempotency-Key")
    assert len(drawn) == 3
    assert len(set(drawn)) == 1
    assert drawn[0]
    assert encoded[0] not in (None, drawn[0])


def test_nobody_there_is_said_with_what_to_do(connect: Connect):
    client = connect("http://127.0.0.1:1", retries=1)
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:1 .*fokker up") as away:
        client("models")
    assert away.value.status is None
    assert client("ready") is False


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response("<html>Hello", media_type="text/html"), "another service"),
        (Response(status_code=308, headers={"Location": "https://moved"}), "https://moved"),
        (Response("<html>Gone", 404), "<html>Gone"),
    ],
)
def test_another_service_at_the_address_is_told_from_ours(
    url: str, gate: Gate, connect: Connect, answer: Response, said: str
):
    gate.answers = [answer]
    with pytest.raises((ServiceUnavailable, RequestRefused), match=said):
        connect(url)("models")


def test_the_key_is_shown_to_the_service_and_to_nobody_else(
    url: str, gate: Gate, connect: Connect, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    client = connect(url, api_key=KEY + "\n")
    client("models")
    with pytest.raises(RequestRefused) as refused:
        client("job", "nobody")
    assert gate.headers("GET", "/models", "Authorization") == [f"Bearer {KEY}"]
    assert repr(client.client) in (f"Client({url!r})", f"AsyncClient({url!r})")
    assert KEY not in caplog.text + repr(refused.value) + repr(vars(client.client))
    assert "httpx" in caplog.text, "nothing was logged, so nothing was looked at"


def test_the_environment_names_the_service_and_the_key(
    url: str, gate: Gate, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FOKKER_URL", f"{url}/")
    monkeypatch.setenv("FOKKER_API_KEY", KEY)
    connect()("models")
    connect(api_key="")("models")
    assert gate.headers("GET", "/models", "Authorization") == [f"Bearer {KEY}", None]


@pytest.mark.parametrize(
    "given",
    [
        {"url": "localhost:8000"},
        {"url": "ftp://localhost"},
        {"url": "http://"},
        {"url": f"http://user:{KEY}@localhost"},
        {"api_key": f"{KEY}\r\nX: 1"},
    ],
)
def test_an_address_or_a_key_that_is_none_is_refused(given: dict[str, Any]):
    name = next(iter(given))
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidInput, match=f"^{name}: ") as refused:
            kind(**given)
        assert KEY not in str(refused.value)


def test_models_and_readiness(url: str, connect: Connect, worker: WorkerStore):
    client = connect(url)
    assert [card["name"] for card in client("models")] == [card["name"] for card in CARDS]
    assert client("model", "digits")["levels"] == 17
    assert client("ready") is True
    worker.withdraw()
    assert client("ready") is False


def test_jobs_are_listed_over_all_pages(url: str, gate: Gate, connect: Connect):
    client = connect(url)
    jobs = [dict(client("submit", "generate", {"model": "digits"}).document) for _ in range(3)]
    gate.seen.clear()
    gate.answers = [  # as the listing will answer
        document({"jobs": jobs[:2], "next": "a cursor"}),
        document({"jobs": jobs[2:], "next": None}),
    ]
    assert [job.id for job in client("jobs", status="queued", page=2)] == [
        job["id"] for job in jobs
    ]
    assert [request.query for request in gate.seen] == [
        "status=queued&limit=2",
        "status=queued&limit=2&cursor=a+cursor",
    ]


def test_a_deleted_job_is_asked_for_by_its_address(url: str, gate: Gate, connect: Connect):
    gate.answers = [Response(status_code=204)]  # as the deletion will answer
    assert connect(url)("delete", "some/job") is None
    assert (gate.seen[0].method, gate.seen[0].raw_path) == ("DELETE", "/jobs/some%2Fjob")

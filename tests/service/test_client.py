"""Both clients against the real API on a real port; what a worker would answer is put by hand."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response

from service.client import (
    AsyncClient,
    Client,
    Event,
    Generated,
    InvalidInput,
    JobCanceled,
    JobFailed,
    RequestRefused,
)
from service.jobs.arrays import pack, unpack
from service.jobs.lease import Claim, WorkerStore
from tests.service.clients import Connect, Serve, draw, encode, likelihoods
from tests.service.helpers import CARDS, LIMIT
from tests.service.network import Gate
from tests.service.uploads import GREY, npy, png


def test_the_client_needs_neither_torch_nor_the_server():
    code = (
        "import sys, service.client; heavy = {'torch', 'fastapi', 'starlette', 'redis', 'celery', "
        "'kombu', 'uvicorn'}; sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


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
    [
        (GREY, "first axis"),
        ([Image.new("CMYK", (8, 8))], "images[0]: cannot write mode CMYK"),
        ("nowhere.png", "images[0]: nowhere.png cannot be read: No such file"),
        ([png(), Path("/")], "images[1]: / cannot be read: Is a directory"),
        (None, "images: none given; an image is a path"),
        (7, "images: given a value of type int; an image is a path"),
        ([None], "images[0]: given a value of type NoneType"),
        ([7.0], "images[0]: given a value of type float"),
        ([[[1, 2], [3]]], "images[0]: given a value of type list"),
        ([np.array([["a", "b"]])], "images[0]: given an array of <U1 of shape (1, 2)"),
    ],
)
def test_images_that_cannot_be_sent_are_refused_before_anything_is_sent(
    url: str, gate: Gate, connect: Connect, images: Any, said: str
):
    with pytest.raises(InvalidInput) as refused:
        connect(url)("invert", images, model="digits")
    assert said in str(refused.value)
    assert gate.seen == []


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (Path("nowhere.safetensors"), "latents: nowhere.safetensors cannot be read"),
        (object(), "latents: given a value of type object; latents are the result of `invert`"),
    ],
)
def test_latents_that_cannot_be_sent_are_refused_before_anything_is_sent(
    url: str, gate: Gate, connect: Connect, latents: Any, said: str
):
    with pytest.raises(InvalidInput) as refused:
        connect(url)("generate", "digits", latents=latents)
    assert said in str(refused.value)
    assert gate.seen == []


def test_numpy_s_numbers_and_arrays_are_options_too(url: str, connect: Connect, serve_one: Serve):
    serve_one(draw)
    found = connect(url)("generate", "digits", count=np.int32(2), seeds=np.arange(2))
    asked = found.job.parameters
    assert (asked["count"], asked["seeds"]) == (2, [0, 1])


@pytest.mark.parametrize("value", [float("nan"), object(), {1}])
def test_options_that_json_cannot_say_are_refused_before_anything_is_sent(
    url: str, gate: Gate, connect: Connect, value: Any
):
    with pytest.raises(InvalidInput, match=r"^count: "):
        connect(url)("generate", "digits", count=value)
    assert gate.seen == []


def test_a_job_without_an_id_is_refused(url: str, gate: Gate, connect: Connect):
    with pytest.raises(InvalidInput, match="no id"):
        connect(url)("job", "")
    assert gate.seen == []


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
    assert [job.id for job in client("jobs", status="queued", page=2)] == [
        job["id"] for job in reversed(jobs)
    ]
    first, second = (request.query for request in gate.seen)
    assert first == "status=queued&limit=2"
    assert second.startswith(f"{first}&cursor=")


def test_a_deleted_job_is_asked_for_by_its_address(url: str, gate: Gate, connect: Connect):
    gate.answers = [Response(status_code=204)]  # as the deletion will answer
    assert connect(url)("delete", "some/job") is None
    assert (gate.seen[0].method, gate.seen[0].raw_path) == ("DELETE", "/jobs/some%2Fjob")

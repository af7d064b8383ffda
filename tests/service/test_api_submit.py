"""The three operations over HTTP: what is queued, and what is refused before anything is."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from service.jobs.arrays import pack, unpack
from service.jobs.hints import QUEUE
from service.jobs.lease import Claim, WorkerStore
from service.jobs.samplers import Adaptive, Ddpm, Reversible
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.helpers import LIMIT, ROOMS
from tests.service.uploads import GREY, form, latents, levels, npy, picture, png, refused

pytestmark = pytest.mark.anyio

Queued = Callable[[], list[str]]
DECODE = {"model": "digits", "sampler": {"name": "pf_ode"}, "init": {"latents": {}}}


async def test_generate_queues_a_job_and_says_where_it_is(
    client: httpx.AsyncClient, queued: Queued, redis_url: str
):
    answer = await client.post("/generate", json={"model": "digits", "count": 2, "class_label": 3})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == job["links"]["self"] == f"/jobs/{job['id']}"
    assert (job["status"], job["operation"], job["attempt"]) == ("queued", "generate", 1)
    assert job["parameters"]["sampler"] == Ddpm().model_dump()
    assert isinstance(job["parameters"]["seed"], int)
    again = (await client.get(answer.headers["Location"])).json()
    for view in (job, again):  # signed for as long as they are new
        assert view["links"].pop("signed")["events"].startswith(f"/jobs/{job['id']}/events?")
    assert again == job
    assert queued() == [job["id"]]
    with redis.Redis.from_url(redis_url) as broker:
        async with asyncio.timeout(LIMIT):
            while not (sent := broker.lindex(QUEUE, 0)):
                await asyncio.sleep(0.01)
    hint = json.loads(sent)
    assert json.loads(base64.b64decode(hint["body"]))[0] == [job["id"]]


async def test_a_seed_that_was_given_is_kept(client: httpx.AsyncClient):
    job = (await client.post("/generate", json={"model": "digits", "seed": 7})).json()
    assert job["parameters"]["seed"] == 7


@pytest.mark.parametrize("operation", ["invert", "loglik"])
async def test_images_come_as_parts_or_as_base64_and_mean_the_same(
    client: httpx.AsyncClient, worker: WorkerStore, operation: str
):
    request, images = {"model": "digits"}, [png(), npy(np.full((8, 8), 2.5))]
    parts = await client.post(f"/{operation}", **form(request, *images))
    encoded = [base64.b64encode(image).decode() for image in images]
    plain = await client.post(f"/{operation}", json=request | {"images": encoded})
    assert parts.status_code == plain.status_code == 202
    expected = np.stack([np.round(GREY / 255 * 16), np.full((8, 8), 2.5)])[:, None]
    np.testing.assert_array_equal(levels(worker, parts.json()), expected)
    np.testing.assert_array_equal(levels(worker, plain.json()), expected)


@pytest.mark.parametrize(
    "data",
    [
        png(),
        picture(GREY.astype(np.uint16) * 257, "PNG"),
        picture(GREY, "WEBP", lossless=True),
        picture(np.repeat(GREY[..., None], 3, axis=2), "PNG"),
        npy(np.round(GREY / 255 * 16)),
    ],
    ids=["8-bit PNG", "16-bit PNG", "WebP", "RGB", "npy"],
)
async def test_every_format_of_one_picture_gives_the_same_levels(
    client: httpx.AsyncClient, worker: WorkerStore, data: bytes
):
    answer = await client.post("/invert", **form({"model": "digits"}, data))
    assert answer.status_code == 202
    np.testing.assert_array_equal(levels(worker, answer.json())[0, 0], np.round(GREY / 255 * 16))


async def test_a_jpeg_gives_levels_close_to_the_picture(
    client: httpx.AsyncClient, worker: WorkerStore
):
    data = picture(GREY, "JPEG", quality=95)
    answer = await client.post("/invert", **form({"model": "digits"}, data))
    error = np.abs(levels(worker, answer.json())[0, 0] - GREY / 255 * 16)
    assert error.max() <= 1


async def test_latents_sent_along_set_the_count(client: httpx.AsyncClient, worker: WorkerStore):
    answer = await client.post("/generate", **form(DECODE, latents=latents(3)))
    assert answer.status_code == 202
    assert answer.json()["parameters"]["count"] == 3
    arrays, _ = unpack(worker.inputs(answer.json()["id"]) or b"")
    np.testing.assert_array_equal(arrays["latents"][:, 0, 0, 0], [0, 1, 2])


async def encoded_job(client: httpx.AsyncClient, worker: WorkerStore) -> str:
    """A finished job with three latents."""
    job = (await client.post("/invert", **form({"model": "digits"}, png()))).json()
    claim = worker.claim(["sha256:digits"], ROOMS)
    assert claim is not None
    claim.put_artifact("latents.safetensors", "application/octet-stream", latents(3))
    claim.succeed({})
    return str(job["id"])


async def test_another_job_s_latents_are_copied_into_the_new_one(
    client: httpx.AsyncClient, worker: WorkerStore
):
    source = await encoded_job(client, worker)
    init = {"latents": {"job": source, "index": [2, 0]}}
    job = (await client.post("/generate", json=DECODE | {"init": init})).json()
    arrays, _ = unpack(worker.inputs(job["id"]) or b"")
    np.testing.assert_array_equal(arrays["latents"][:, 0, 0, 0], [2, 0])
    assert job["parameters"]["count"] == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"job": "nobody"}, "init.latents.job"),
        ({"name": "latent.safetensors"}, "init.latents.name"),
        ({"index": [0, 3]}, "init.latents.index"),
        ({"index": []}, "init.latents.index"),
    ],
)
async def test_latents_that_a_job_does_not_have_are_refused(
    client: httpx.AsyncClient,
    worker: WorkerStore,
    queued: Queued,
    change: dict[str, Any],
    field: str,
):
    init = {"latents": {"job": await encoded_job(client, worker)} | change}
    await refused(client.post("/generate", json=DECODE | {"init": init}), field, queued)


REVERSIBLE = {"name": "reversible", "steps": 20}


def pairs(solver: str | None) -> bytes:
    """Three latents with companions, as encoded by a solver."""
    rows = np.ones((3, 1, 8, 8))
    said = {} if solver is None else {"solver": solver}
    return pack({"latents": rows, "companion": 2 * rows}, {"digest": "sha256:digits"} | said)


def decode_reversibly(data: bytes) -> dict[str, Any]:
    return form(DECODE | {"sampler": {"name": "pf_ode", "solver": REVERSIBLE}}, latents=data)


async def test_a_reversible_pair_goes_back_in_whole(client: httpx.AsyncClient, worker: WorkerStore):
    data = pairs(Reversible(steps=20).model_dump_json())
    answer = await client.post("/generate", **decode_reversibly(data))
    assert answer.status_code == 202
    arrays, _ = unpack(worker.inputs(answer.json()["id"]) or b"")
    assert float(arrays["companion"][0, 0, 0, 0]) == 2


@pytest.mark.parametrize(
    "solver", [None, Reversible(steps=21).model_dump_json(), Adaptive().model_dump_json()]
)
async def test_latents_that_a_reversible_solver_did_not_encode_are_refused(
    client: httpx.AsyncClient, queued: Queued, solver: str | None
):
    sending = client.post("/generate", **decode_reversibly(pairs(solver)))
    problem = await refused(sending, "sampler.solver", queued)
    assert "encode the images again" in problem["detail"]


async def test_an_encoding_without_its_companion_is_refused(
    client: httpx.AsyncClient, queued: Queued
):
    rows = np.ones((3, 1, 8, 8))
    said = {"digest": "sha256:digits", "solver": Reversible(steps=20).model_dump_json()}
    sending = client.post("/generate", **decode_reversibly(pack({"latents": rows}, said)))
    problem = await refused(sending, "latents", queued)
    assert '"companion"' in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({}, "model", "required"),
        ({"model": "digit"}, "model", 'did you mean "digits"'),
        ({"model": "digits", "sampler": {"name": "ddpn"}}, "sampler.name", 'mean "ddpm"'),
        ({"model": "digits", "sampler": {}}, "sampler.name", "missing"),
        ({"model": "digits", "sampler": {"name": "ddim", "steps": 0}}, "sampler.steps", "given 0"),
        ({"model": "digits", "sampler": {"name": "ddpm", "steps": 4001}}, "sampler.steps", "4000"),
        (
            {
                "model": "digits",
                "sampler": {"name": "pf_ode", "solver": {"name": "heun", "steps": 9999}},
            },
            "sampler.solver.steps",
            "4000",
        ),
        *(
            (
                {"model": "digits", "sampler": {"name": "langevin", "t": t}},
                "sampler.t",
                "times are 0.001..1",
            )
            for t in (0, 1.001, 1e300)
        ),
        ({"model": "digits", "class_label": 10}, "class_label", "0..9"),
        ({"model": "digits", "class_label": -1}, "class_label", "given -1"),
        ({"model": "faces", "class_label": 0}, "class_label", "no classes"),
        ({"model": "digits", "count": 0}, "count", "given 0"),
        ({"model": "digits", "count": 5}, "count", "at most 4"),
        ({"model": "digits", "seeds": [1, 2, 3, 4, 5]}, "seeds", "at most 4"),
        ({"model": "digits", "seeds": [1, "x"]}, "seeds[1]", "integer"),
        ({"model": "digits", "count": 10**40}, "count", "at most 4"),
        ({"model": "digits", "guidance": 3}, "guidance", "class_label"),
        ({"model": "digits", "size": 8}, "size", "no such field"),
        ({"model": "digits", "images": ["aGk="]}, "images", "no images"),
        (
            {"model": "digits", "sampler": {"name": "ddpm", "steps": 1001, "grid": "trailing"}},
            "sampler.steps",
            "1000 times",
        ),
        (DECODE, "init.latents", "neither"),
        (
            {"model": "digits", "sampler": {"name": "pf_ode", "solver": REVERSIBLE}},
            "sampler.solver",
            "draws nothing",
        ),
        (
            {"model": "digits", "sampler": {"name": "annealed_langevin", "steps": 4000}},
            "sampler.steps",
            "4000",
        ),
    ],
)
async def test_a_wrong_generate_is_refused_at_its_field(
    client: httpx.AsyncClient, queued: Queued, body: dict[str, Any], field: str, said: str
):
    problem = await refused(client.post("/generate", json=body), field, queued)
    assert said in problem["detail"]


@pytest.mark.parametrize("operation", ["generate", "invert", "loglik"])
@pytest.mark.parametrize("priority", ["urgent", "Batch", None, 1])
async def test_an_unknown_priority_is_refused_by_every_operation(
    client: httpx.AsyncClient, queued: Queued, operation: str, priority: Any
):
    body: dict[str, Any] = {"model": "digits", "priority": priority}
    if operation != "generate":
        body["images"] = [base64.b64encode(png()).decode()]
    problem = await refused(client.post(f"/{operation}", json=body), "priority", queued)
    assert "'interactive' or 'batch'" in problem["detail"]


async def test_a_job_says_its_priority(client: httpx.AsyncClient, queued: Queued):
    given = [{"priority": "batch"}, {}, {"priority": "interactive"}]
    jobs = [
        (await client.post("/generate", json={"model": "digits"} | how)).json() for how in given
    ]
    assert [job["priority"] for job in jobs] == ["batch", "interactive", "interactive"]
    shown = (await client.get(f"/jobs/{jobs[0]['id']}")).json()
    assert shown["priority"] == "batch"
    assert queued() == [jobs[1]["id"], jobs[2]["id"], jobs[0]["id"]]


HEUN = {"name": "heun", "steps": 10}
SAMPLES = {"kind": "uniform", "samples": 2}


@pytest.mark.parametrize(
    ("operation", "change", "rows", "calls"),
    [
        ("generate", {"count": 3}, 3, 250),
        ("generate", {"seeds": [5, 6]}, 2, 250),
        ("generate", {"sampler": {"name": "pf_ode", "solver": HEUN}}, 1, 20),
        ("invert", {"solver": HEUN}, 2, 40),
        ("invert", {"solver": {"name": "adaptive", "tolerance": 1e-3}}, 2, 2 * 57),
        ("invert", {"solver": {"name": "adaptive", "max_calls": 10}}, 2, 20),
        ("loglik", {}, 2, 39),
        ("loglik", {"dequantization": SAMPLES}, 4, 39),
        ("loglik", {"dequantization": None}, 2, 39),
        ("loglik", {"method": "elbo", "dequantization": SAMPLES}, 2, 64 + 8),
    ],
)
async def test_a_job_is_stored_with_its_rows_and_the_calls_that_they_will_take(
    client: httpx.AsyncClient,
    store: JobStore,
    operation: str,
    change: dict[str, Any],
    rows: int,
    calls: int,
):
    images = () if operation == "generate" else (png(), png())
    answer = await client.post(f"/{operation}", **form({"model": "digits"} | change, *images))
    assert answer.status_code == 202, answer.json()
    job = await store.get(answer.json()["id"])
    assert job is not None
    assert (job.rows, job.calls) == (rows, calls)


async def test_latents_occupy_a_row_each(client: httpx.AsyncClient, store: JobStore):
    answer = await client.post("/generate", **form(DECODE, latents=latents(3)))
    job = await store.get(answer.json()["id"])
    assert job is not None
    assert job.rows == 3


async def test_a_number_beyond_all_floats_is_refused(client: httpx.AsyncClient, queued: Queued):
    body = b'{"model": "digits", "class_label": 1, "guidance": 1e999}'
    headers = {"Content-Type": "application/json"}
    await refused(client.post("/generate", content=body, headers=headers), "guidance", queued)


async def test_all_that_is_wrong_is_named_at_once(client: httpx.AsyncClient):
    body = {"model": "digits", "count": 0, "seed": -1, "guidance": 99, "format": "gif", "x": 1}
    problem = (await client.post("/generate", json=body)).json()
    fields = {error["field"]: error.get("given") for error in problem["errors"]}
    assert fields == {"count": 0, "seed": -1, "guidance": 99, "format": "gif", "x": 1}


@pytest.mark.parametrize("operation", ["invert", "loglik"])
@pytest.mark.parametrize(
    ("images", "field", "said"),
    [
        ([], "images", "none given"),
        ([png(), b"not an image"], "images[1]", "not an image"),
        ([png(GREY[:7])], "images[0]", "8x7"),
        ([png(np.zeros((200, 200), np.uint8))], "images[0]", "at most 10000"),
        ([png(np.zeros((8, 8, 4), np.uint8))], "images[0]", "alpha"),
        ([npy(np.zeros((8, 8, 3)))], "images[0]", "shape"),
        ([npy(np.full((8, 8), 17.0))], "images[0]", "0..16"),
        ([png()] * 5, "images", "at most 4"),
    ],
    ids=["none", "text", "size", "pixels", "alpha", "channels", "range", "count"],
)
async def test_a_wrong_image_is_refused_by_its_number(
    client: httpx.AsyncClient,
    queued: Queued,
    operation: str,
    images: list[bytes],
    field: str,
    said: str,
):
    sending = client.post(f"/{operation}", **form({"model": "digits"}, *images))
    assert said in (await refused(sending, field, queued))["detail"]


async def test_what_is_no_base64_is_refused_by_its_number(
    client: httpx.AsyncClient, queued: Queued
):
    body = {"model": "digits", "images": [base64.b64encode(png()).decode(), "%%%"]}
    await refused(client.post("/invert", json=body), "images[1]", queued)
    await refused(client.post("/invert", json=body | {"images": "aGk="}), "images", queued)
    await refused(client.post("/invert", json=body | {"images": [1]}), "images[0]", queued)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"junk", "safetensors"),
        (latents(latents=np.zeros((1, 1, 8, 7))), "(N, 1, 8, 8)"),
        (latents(latents=np.zeros((1, 8, 8))), "(N, 1, 8, 8)"),
        (latents(latents=np.zeros((1, 1, 8, 8), np.int64)), "int64"),
        (latents(latents=np.full((1, 1, 8, 8), np.nan)), "finite"),
        (latents(0), "at least one"),
        (latents(5), "at most 4"),
        (latents(digest="sha256:old"), "sha256:old"),
    ],
)
async def test_wrong_latents_are_refused(
    client: httpx.AsyncClient, queued: Queued, data: bytes, said: str
):
    sending = client.post("/generate", **form(DECODE, latents=data))
    assert said in (await refused(sending, "latents", queued))["detail"]


async def test_latents_that_nothing_asks_for_are_refused(client: httpx.AsyncClient, queued: Queued):
    sending = client.post("/generate", **form({"model": "digits"}, latents=latents()))
    await refused(sending, "latents", queued)


async def test_a_count_that_contradicts_the_latents_is_refused(
    client: httpx.AsyncClient, queued: Queued
):
    sending = client.post("/generate", **form(DECODE | {"count": 2}, latents=latents(3)))
    await refused(sending, "count", queued)


@pytest.mark.parametrize(
    "parts",
    [
        [("image", ("0.png", png()))],
        [("request", (None, "{}")), ("request", (None, "{}"))],
        [("request", (None, "[]"))],
    ],
    ids=["none", "two", "a list"],
)
async def test_a_form_has_one_request(client: httpx.AsyncClient, queued: Queued, parts: Any):
    await refused(client.post("/invert", files=parts), "request", queued)


async def test_a_part_of_another_name_is_refused(client: httpx.AsyncClient, queued: Queued):
    sending = client.post("/invert", **form({"model": "digits"}, picture=png()))
    await refused(sending, "picture", queued)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"model": ', "application/json", 400),
        (b'{"model": NaN}', "application/json", 400),
        (b"[" * 10_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"no boundary", "multipart/form-data", 400),
        (b"rubbish", "multipart/form-data; boundary=b", 400),
        (b"model=digits", "application/x-www-form-urlencoded", 415),
        (b"", "", 415),
        (b'"text"', "application/json", 422),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    client: httpx.AsyncClient, queued: Queued, body: bytes, content_type: str, status: int
):
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await client.post("/generate", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert queued() == []


async def test_a_body_over_the_limit_is_refused_by_its_declared_length(client: httpx.AsyncClient):
    answer = await client.post("/invert", **form({"model": "digits"}, bytes(200_001)))
    assert answer.status_code == 413
    assert "200000" in answer.json()["detail"]


async def test_a_body_over_the_limit_is_refused_while_it_is_read(client: httpx.AsyncClient):
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    answer = await client.post("/generate", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert sent < 300


async def test_waiting_answers_the_finished_job(
    client: httpx.AsyncClient, serve_one: Callable[[Callable[[Claim], None]], None]
):
    serve_one(lambda claim: claim.succeed({"images": []}))
    headers = {"Prefer": "respond-async, wait=2"}
    answer = await client.post("/generate", json={"model": "digits"}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=2"
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["result"] == {"images": []}


async def test_waiting_in_vain_answers_the_job_as_it_stands(client: httpx.AsyncClient):
    headers = {"Prefer": "wait=0"}
    answer = await client.post("/generate", json={"model": "digits"}, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


async def test_waiting_is_capped(client: httpx.AsyncClient, settings: Settings):
    headers = {"Prefer": 'wait="100000"'}
    body = {"model": "digits"}
    async with asyncio.timeout(settings.max_wait + 3):
        answer = await client.post("/generate", json=body, headers=headers)
    assert answer.headers["Preference-Applied"] == f"wait={settings.max_wait:g}"


@pytest.mark.parametrize("prefer", ["wait", "wait=soon", "wait=-1", "handling=strict", ""])
async def test_a_preference_that_cannot_be_read_is_ignored(client: httpx.AsyncClient, prefer: str):
    headers = {"Prefer": prefer}
    answer = await client.post("/generate", json={"model": "digits"}, headers=headers)
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


async def test_a_flood_of_errors_is_answered_with_a_few(client: httpx.AsyncClient):
    many: list[dict[str, Any]] = [
        {"model": "digits", "seeds": [-1] * 20_000},
        {"model": "digits"} | {f"unknown{i}": 1 for i in range(5_000)},
        {"model": "digits", "x" * 50_000: 1},
        {"model": "digits", "count": 10**4000},
    ]
    for body in many:
        answer = await client.post("/generate", json=body)
        assert answer.status_code == 422
        assert len(answer.content) < 10_000
        assert 1 <= len(answer.json()["errors"]) <= 20


@pytest.mark.parametrize("missing", [b"--\r\n", b"--", b"\r\n--XbX--\r\n"])
async def test_a_multipart_body_that_breaks_off_is_refused(
    client: httpx.AsyncClient, queued: Queued, missing: bytes
):
    part = b'--XbX\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"request", b"", b'{"model": "digits"}')
    body += part % (b"image", b'; filename="a.png"', png()) * 2
    whole = body + b"--XbX--\r\n"
    assert whole.endswith(missing) or missing == b"--"
    cut = whole[: whole.rindex(missing)]
    headers = {"Content-Type": "multipart/form-data; boundary=XbX"}
    answer = await client.post("/invert", content=cut, headers=headers)
    assert answer.status_code == 400
    assert "breaks off" in answer.json()["detail"]
    assert queued() == []
    assert (await client.post("/invert", content=whole, headers=headers)).status_code == 202

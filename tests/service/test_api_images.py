"""Over HTTP: how pictures of another size are fitted, and which results can be asked for."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from service.jobs.arrays import unpack
from service.jobs.lease import WorkerStore
from service.settings import Settings
from tests.service.helpers import card
from tests.service.uploads import GREY, form, latents, levels, npy, png, raw_png, refused

pytestmark = pytest.mark.anyio

Queued = Callable[[], list[str]]
DECODE = {"model": "digits", "sampler": {"name": "pf_ode"}, "init": {"latents": {}}}
LARGE = np.kron(GREY, np.ones((4, 4), np.uint8))
WIDE = np.pad(LARGE, ((0, 0), (16, 16)))
TALL = np.pad(LARGE, ((16, 16), (0, 0)))


@pytest.mark.parametrize("operation", ["invert", "loglik"])
async def test_pictures_of_another_size_are_fitted_where_asked_for(
    client: httpx.AsyncClient, worker: WorkerStore, operation: str
):
    expected = np.round(GREY / 255 * 16)
    for fit, pixels in (("resize", LARGE), ("crop", WIDE), ("crop", TALL)):
        answer = await client.post(
            f"/{operation}", **form({"model": "digits", "fit": fit}, png(pixels), png())
        )
        assert answer.status_code == 202, answer.text
        assert answer.json()["parameters"]["fit"] == fit
        got = levels(worker, answer.json())[:, 0]
        np.testing.assert_array_equal(got[1], expected)
        assert np.abs(got[0] - expected)[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("fit", ["exact", None])
async def test_other_sizes_are_refused_unless_asked_for(
    client: httpx.AsyncClient, queued: Queued, fit: str | None
):
    request = {"model": "digits"} | ({"fit": fit} if fit else {})
    problem = await refused(
        client.post("/invert", **form(request, png(LARGE))), "images[0]", queued
    )
    assert 'set "fit" to "resize" or "crop"' in problem["detail"]


async def test_an_array_of_another_shape_is_refused_whatever_the_fit(
    client: httpx.AsyncClient, queued: Queued
):
    sending = client.post(
        "/loglik", **form({"model": "digits", "fit": "resize"}, npy(np.zeros((16, 16))))
    )
    problem = await refused(sending, "images[0]", queued)
    assert "scales pictures, not arrays" in problem["detail"]


async def test_an_unknown_fit_is_refused(client: httpx.AsyncClient, queued: Queued):
    sending = client.post("/invert", **form({"model": "digits", "fit": "pad"}, png()))
    await refused(sending, "fit", queued)


async def test_too_many_pixels_are_refused_by_the_header_whatever_the_fit(
    client: httpx.AsyncClient, queued: Queued, settings: Settings
):
    side = int(settings.max_pixels**0.5) + 1
    bomb = raw_png(np.zeros((side, side, 1), np.uint8), rows=0)
    for fit in ("exact", "resize", "crop"):
        sending = client.post("/invert", **form({"model": "digits", "fit": fit}, png(), bomb))
        problem = await refused(sending, "images[1]", queued)
        assert f"at most {settings.max_pixels}" in problem["detail"]


async def test_the_pictures_of_a_request_are_bounded_together(
    client: httpx.AsyncClient, queued: Queued, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.api.submission.SCALED", 1)
    picture = png(np.zeros((60, 60), np.uint8))
    request = {"model": "digits", "fit": "resize"}
    sending = client.post("/invert", **form(request, picture, picture, picture))
    problem = await refused(sending, "images", queued)
    assert "10800 pixels together; at most 10000" in problem["detail"]
    assert (await client.post("/invert", **form(request, picture, picture))).status_code == 202


@pytest.fixture
def spectral(worker: WorkerStore, client: httpx.AsyncClient) -> str:
    """A model whose images have five channels: no picture shows them."""
    worker.announce([card("spectral", [5, 4, 4], 256, None)], ttl=60)
    return "spectral"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, "format"),
        ({"format": "webp"}, "format"),
        ({"format": "png", "grid": False}, "format"),
        ({"format": "npy", "grid": True}, "grid"),
        ({"format": "safetensors", "grid": True}, "grid"),
    ],
)
async def test_no_picture_is_promised_of_channels_that_none_has(
    client: httpx.AsyncClient, queued: Queued, spectral: str, change: dict[str, Any], field: str
):
    problem = await refused(
        client.post("/generate", json={"model": spectral} | change), field, queued
    )
    assert "5 channels" in problem["detail"]


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("grid", [None, False])
async def test_arrays_can_be_had_of_any_number_of_channels(
    client: httpx.AsyncClient, spectral: str, kind: str, grid: bool | None
):
    body = {"model": spectral, "format": kind, "grid": grid}
    assert (await client.post("/generate", json=body)).status_code == 202


async def test_latents_come_back_in_as_npy(client: httpx.AsyncClient, worker: WorkerStore):
    rows = np.arange(3.0, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 8, 8), np.float32)
    init = {"latents": {"index": [2, 1]}}
    answer = await client.post("/generate", **form(DECODE | {"init": init}, latents=npy(rows)))
    assert answer.status_code == 202, answer.text
    arrays, _ = unpack(worker.inputs(answer.json()["id"]) or b"")
    assert arrays["latents"].dtype == np.float64
    np.testing.assert_array_equal(arrays["latents"][:, 0, 0, 0], [2, 1])


REVERSIBLE = {"name": "reversible", "steps": 20}


async def test_a_reversible_solver_s_pairs_need_safetensors(
    client: httpx.AsyncClient, queued: Queued
):
    request = {"model": "digits", "solver": REVERSIBLE, "format": "npy"}
    problem = await refused(client.post("/invert", **form(request, png())), "format", queued)
    assert "pair" in problem["detail"]
    sampler = {"name": "pf_ode", "solver": REVERSIBLE}
    sending = client.post(
        "/generate", **form(DECODE | {"sampler": sampler}, latents=npy(np.ones((1, 1, 8, 8))))
    )
    await refused(sending, "sampler.solver", queued)


async def test_choosing_one_latent_many_times_is_bounded_before_it_is_copied(
    client: httpx.AsyncClient, queued: Queued
):
    init = {"latents": {"index": [0] * 10_000}}
    sending = client.post("/generate", **form(DECODE | {"init": init}, latents=latents(1)))
    await refused(sending, "init.latents.index", queued)

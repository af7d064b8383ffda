"""Ids and names that nobody was given: they find nothing, whatever they are made of."""

import httpx
import pytest

pytestmark = pytest.mark.anyio

IDS = [
    "..%2f..%2fmodels",
    "%2e%2e",
    "%00",
    "%ff%fe",
    "%ed%a0%80",  # a lone surrogate
    "*",
    "{id}:events",
    "{id}:inputs",
    "{id}:artifact:0.png",
    "x" * 5000,
]


@pytest.mark.parametrize("wanted", IDS, ids=lambda text: text[:24])
@pytest.mark.parametrize("rest", ["", "/events", "/cancel", "/artifacts/0.png"])
async def test_an_id_that_no_job_has_finds_nothing(
    client: httpx.AsyncClient, wanted: str, rest: str
):
    """Among them those that, put into a key, would lead to another value of a job that there is."""
    job = (await client.post("/generate", json={"model": "digits"})).json()
    path = f"/jobs/{wanted.format(id=job['id'])}{rest}"
    answer = await client.request("POST" if rest == "/cancel" else "GET", path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["..%2f0.png", "%00", "%ed%a0%80", "0.png:x", "*"])
async def test_a_name_that_no_artifact_has_finds_nothing(client: httpx.AsyncClient, name: str):
    job = (await client.post("/generate", json={"model": "digits"})).json()
    answer = await client.get(f"/jobs/{job['id']}/artifacts/{name}")
    assert answer.status_code == 404


@pytest.mark.parametrize("wanted", ["../../etc/passwd", "\0", "a:inputs", "*", "", "😀"])
@pytest.mark.parametrize("field", ["job", "name"])
async def test_latents_of_a_made_up_job_are_refused(
    client: httpx.AsyncClient, wanted: str, field: str
):
    init = {"latents": {"job": "nobody"} | {field: wanted}}
    body = {"model": "digits", "sampler": {"name": "pf_ode"}, "init": init}
    answer = await client.post("/generate", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("init.latents")

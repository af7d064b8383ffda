"""API keys, whose jobs they open, and URLs that are signed for what cannot send a header."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from service.api import create_app
from service.api.auth import Key, Signer, check_exposure, new_key, read_keys
from service.api.problems import Problem
from service.cli import build_app
from service.jobs.lease import WorkerStore
from service.settings import Settings, SettingsError
from tests.service.helpers import CARDS

pytestmark = pytest.mark.anyio
ANNA, BELA = "anna-key-0123456789", "bela-key-0123456789"
KEYS = SecretStr(f"anna:{ANNA}, bela:{BELA}")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def api(settings: Settings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings.model_copy(update=changes))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        yield client


@pytest.fixture
async def guarded(settings: Settings, worker: WorkerStore) -> AsyncIterator[httpx.AsyncClient]:
    worker.announce(CARDS, ttl=60)
    async with api(settings, api_keys=KEYS) as client:
        yield client


async def submitted(client: httpx.AsyncClient, key: str) -> dict[str, Any]:
    answer = await client.post("/generate", json={"model": "digits"}, headers=bearer(key))
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate"),
        ("POST", "/invert"),
        ("POST", "/loglik"),
        ("GET", "/jobs"),
        ("GET", "/jobs/x"),
        ("DELETE", "/jobs/x"),
        ("POST", "/jobs/x/cancel"),
        ("GET", "/jobs/x/events"),
        ("GET", "/jobs/x/artifacts/y"),
        ("GET", "/models"),
        ("GET", "/models/digits"),
    ],
)
@pytest.mark.parametrize("headers", [{}, bearer("nobody"), {"Authorization": f"Basic {ANNA}"}])
async def test_without_a_known_key_there_is_nothing(
    guarded: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
):
    answer = await guarded.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
async def test_health_needs_no_key(guarded: httpx.AsyncClient, path: str):
    assert (await guarded.get(path)).status_code == 200


@pytest.mark.parametrize("headers", [bearer(ANNA), {"X-API-Key": ANNA}])
async def test_a_key_is_taken_from_either_header(
    guarded: httpx.AsyncClient, headers: dict[str, str]
):
    assert (await guarded.get("/jobs", headers=headers)).json() == {"jobs": [], "next": None}


async def test_a_job_is_there_for_its_owner_and_never_was_for_others(
    guarded: httpx.AsyncClient, worker: WorkerStore
):
    job = await submitted(guarded, ANNA)
    own, latents = job["links"]["self"], {"latents": {"job": job["id"]}}
    decode = {"model": "digits", "sampler": {"name": "pf_ode"}, "init": latents}
    for method, path in (
        ("GET", own),
        ("DELETE", own),
        ("POST", f"{own}/cancel"),
        ("GET", f"{own}/events"),
        ("GET", f"{own}/artifacts/0.png"),
    ):
        answer = await guarded.request(method, path, headers=bearer(BELA))
        assert answer.status_code == 404, (method, path)
        nobody = await guarded.request(
            method, path.replace(job["id"], "nobody"), headers=bearer(BELA)
        )
        expected = nobody.json()["detail"].replace("nobody", job["id"])
        assert answer.json()["detail"] == expected, "the answer tells that the job exists"
    taken = await guarded.post("/generate", json=decode, headers=bearer(BELA))
    assert taken.status_code == 422
    assert "never was" in taken.json()["detail"]
    assert (await guarded.get("/jobs", headers=bearer(BELA))).json()["jobs"] == []
    assert (await guarded.get(own, headers=bearer(ANNA))).json()["status"] == "queued"


async def test_a_signed_url_works_without_a_key_and_for_its_path_only(
    guarded: httpx.AsyncClient, worker: WorkerStore
):
    first, second = await submitted(guarded, ANNA), await submitted(guarded, ANNA)
    claim = worker.claim(["sha256:digits"], {"interactive": 1, "batch": 1})
    assert claim is not None
    claim.put_artifact("0.png", "image/png", b"png")
    claim.succeed({})
    view = (await guarded.get(first["links"]["self"], headers=bearer(ANNA))).json()
    signed = view["links"]["signed"]
    assert (await guarded.get(signed["artifacts"]["0.png"])).content == b"png"
    assert "event: succeeded" in (await guarded.get(signed["events"])).text
    for moved in (
        signed["events"].replace(first["id"], second["id"]),
        signed["events"].replace("/events", "/artifacts/0.png"),
        signed["events"].replace("expires=", "expires=9"),
        signed["events"][:-1] + ("A" if signed["events"][-1] != "A" else "B"),
        view["links"]["events"] + "?expires=x&signature=é",
    ):
        assert (await guarded.get(moved)).status_code == 403, moved
    # It opens what it was made for, and no more.
    query = signed["events"].partition("?")[2]
    assert (await guarded.get(f"{view['links']['self']}?{query}")).status_code == 401


async def test_a_signature_runs_out():
    async def secret() -> bytes:
        return b"secret"

    path, _, query = (await Signer(secret, -1).sign("/jobs/x/events")).partition("?")
    with pytest.raises(Problem, match="expired"):
        await Signer(secret, 60).check(path, dict(httpx.QueryParams(query)))


async def test_all_processes_of_a_store_know_each_other_s_signatures(
    settings: Settings, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    async with api(settings, api_keys=KEYS) as one, api(settings, api_keys=KEYS) as other:
        job = await submitted(one, ANNA)
        await one.post(job["links"]["cancel"], headers=bearer(ANNA))
        answer = await other.get(job["links"]["signed"]["events"])
        assert "event: canceled" in answer.text


# Keys


def test_a_key_is_kept_as_a_salted_hash():
    key, other = Key.of("anna", ANNA), Key.of("anna", ANNA)
    assert key.matches(ANNA)
    assert not key.matches(BELA)
    assert key.digest != other.digest
    assert ANNA not in str(key) + repr(key)
    assert Key.from_line(str(key)) == key


def test_keys_come_from_a_file_too(settings: Settings, tmp_path: Path):
    made = new_key()
    path = tmp_path / "keys"
    path.write_text(f"# who\n\n{Key.of('carl', made)}\n")
    keys = read_keys(settings.model_copy(update={"api_keys": KEYS, "api_keys_file": path}))
    assert [key.owner for key in keys] == ["anna", "bela", "carl"]
    assert keys[2].matches(made)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("anna", "at least 16"),
        ("anna:short", "at least 16"),
        (f"an na:{ANNA}", "owner"),
        (f":{ANNA}", "owner"),
    ],
)
def test_a_bad_key_is_named_but_not_shown(settings: Settings, given: str, said: str):
    with pytest.raises(SettingsError, match=said) as caught:
        read_keys(settings.model_copy(update={"api_keys": SecretStr(given)}))
    assert "FOKKER_API_KEYS" in str(caught.value)
    assert ANNA not in str(caught.value)


@pytest.mark.parametrize("line", ["carl", "carl:00:11", "carl:zz:zz", "ca rl:00:" + "0" * 64])
def test_a_bad_line_is_named(settings: Settings, tmp_path: Path, line: str):
    path = tmp_path / "keys"
    path.write_text(f"\n{line}\n")
    with pytest.raises(SettingsError, match="line 2"):
        read_keys(settings.model_copy(update={"api_keys_file": path}))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_a_network_is_not_served_without_keys(settings: Settings, host: str):
    with pytest.raises(SettingsError, match="FOKKER_API_KEYS"):
        check_exposure(settings, host, [])
    check_exposure(settings, host, [Key.of("anna", ANNA)])
    check_exposure(settings.model_copy(update={"no_auth": True}), host, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(settings: Settings, host: str):
    check_exposure(settings, host, [])


def test_the_command_makes_a_key_that_opens(settings: Settings, tmp_path: Path):
    lines = CliRunner().invoke(build_app(), ["key", "anna", "--hashed"]).output.splitlines()
    owner, _, key = lines[0].partition(":")
    assert owner == "anna"
    assert Key.from_line(lines[1]).matches(key)
    refused = CliRunner().invoke(build_app(), ["key", "no spaces"])
    assert refused.exit_code == 2


@pytest.mark.parametrize("origins", ["", "https://a.example,https://b.example"])
async def test_browsers_of_named_origins_may_call(
    settings: Settings, origins: str, worker: WorkerStore
):
    async with api(settings, cors_origins=origins) as client:
        answer = await client.get("/healthz", headers={"Origin": "https://b.example"})
        allowed = answer.headers.get("Access-Control-Allow-Origin")
        assert allowed == ("https://b.example" if origins else None)

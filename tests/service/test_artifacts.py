"""Artifacts in files, over HTTP: from a folder, from an S3-compatible server, and from neither."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
from moto.server import ThreadedMotoServer

from service.api import create_app
from service.jobs.arrays import unpack
from service.jobs.artifacts import open_artifacts
from service.jobs.errors import ArtifactsError
from service.jobs.lease import Claim, LeaseLost, WorkerStore
from service.jobs.redis_store import RedisWorkerStore
from service.jobs.store import JobStore
from service.settings import Settings, SettingsError
from tests.service.helpers import CARDS, ROOMS
from tests.service.uploads import latents

pytestmark = pytest.mark.anyio
LARGE = bytes(range(256)) * 10_000


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of an S3-compatible server on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own; the environment says where, as it would in production."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", use_listings_cache=False)
    if files.exists("fokker"):
        files.rm("fokker", recursive=True)
    files.mkdir("fokker")
    return "s3://fokker/artifacts"


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/artifacts"
    s3: str = request.getfixturevalue("s3")
    return s3


@pytest.fixture
def settings(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"artifacts": url})


def stored(url: str) -> list[str]:
    """The names of the files under a URL."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return sorted(path.rpartition("/")[2] for path in files.find(root))


async def claimed(client: httpx.AsyncClient, worker: WorkerStore) -> Claim:
    assert (await client.post("/generate", json={"model": "digits"})).status_code == 202
    claim = worker.claim([CARDS[0]["digest"]], ROOMS)
    assert claim is not None
    return claim


async def test_artifacts_are_served_from_files_and_deleted_with_their_job(
    client: httpx.AsyncClient, worker: WorkerStore, url: str
):
    claim = await claimed(client, worker)
    claim.put_artifact("0.png", "image/png", b"\x89PNG\r\n")
    claim.put_artifact("images.npy", "application/x-npy", LARGE)
    claim.succeed({"images": [{"artifact": "0.png"}]})
    job = (await client.get(f"/jobs/{claim.job.id}")).json()
    for name, data in (("0.png", b"\x89PNG\r\n"), ("images.npy", LARGE)):
        answer = await client.get(job["links"]["artifacts"][name])
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["Content-Length"] == str(len(data))
    assert stored(url) == ["0.png", "images.npy"]
    assert (await client.delete(job["links"]["self"])).status_code == 204
    assert stored(url) == []


async def test_what_a_lost_worker_wrote_is_removed(
    store: JobStore, client: httpx.AsyncClient, worker: WorkerStore, url: str
):
    claim = await claimed(client, worker)
    await store.forget(claim.job.id)
    with pytest.raises(LeaseLost):
        claim.put_artifact("0.png", "image/png", b"late")
    assert stored(url) == []


async def test_a_sweep_finds_what_nobody_knows(store: JobStore, url: str):
    artifacts = open_artifacts(store.settings)
    artifacts.put("gone", "0.png", b"x")
    assert artifacts.older_than(60) == set()
    assert artifacts.older_than(-2) == {"gone"}
    store.settings = store.settings.model_copy(update={"job_ttl": -2})
    assert await store.sweep() == 1
    assert stored(url) == []
    artifacts.remove("gone")  # once more is no mistake


async def test_an_artifact_that_is_no_longer_there_is_gone(
    client: httpx.AsyncClient, worker: WorkerStore, url: str
):
    claim = await claimed(client, worker)
    claim.put_artifact("0.png", "image/png", b"x")
    claim.put_artifact("1.png", "image/png", b"x")
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    files.rm(next(path for path in files.find(root) if path.endswith("0.png")))
    answer = await client.get(f"/jobs/{claim.job.id}/artifacts/0.png")
    assert (answer.status_code, answer.json()["status"]) == (410, 410)
    assert '"0.png"' in answer.json()["detail"]


async def test_a_store_that_fails_is_a_503_that_says_what_is_wrong(
    client: httpx.AsyncClient, worker: WorkerStore, url: str
):
    claim = await claimed(client, worker)
    claim.put_artifact("latents.safetensors", "application/vnd.safetensors", latents(1))
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    files.rm(root, recursive=True)
    if url.startswith("s3"):
        files.rmdir("fokker")
    else:
        Path(root).write_text("a file where a folder was")
    body = {"model": "digits", "sampler": {"name": "pf_ode"}}
    body["init"] = {"latents": {"job": claim.job.id}}
    for answer in (
        await client.post("/generate", json=body),
        await client.get(f"/jobs/{claim.job.id}/artifacts/latents.safetensors"),
    ):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "artifacts cannot be read now" in answer.json()["detail"]
    with pytest.raises(ArtifactsError, match="artifacts cannot be written now"):
        claim.put_artifact("0.png", "image/png", b"x")


async def test_latents_in_use_outlive_the_job_that_they_are_of(
    client: httpx.AsyncClient, worker: WorkerStore, url: str
):
    claim = await claimed(client, worker)
    claim.put_artifact("latents.safetensors", "application/vnd.safetensors", latents(2))
    claim.succeed({"images": []})
    body = {"model": "digits", "sampler": {"name": "pf_ode"}}
    body["init"] = {"latents": {"job": claim.job.id}}
    assert (await client.post("/generate", json=body)).status_code == 202
    assert (await client.delete(f"/jobs/{claim.job.id}")).status_code == 204
    assert stored(url) == []
    user = worker.claim([CARDS[0]["digest"]], ROOMS)
    assert user is not None
    user.release()
    again = worker.claim([CARDS[0]["digest"]], ROOMS)
    assert again is not None
    packed = again.inputs()
    assert packed is not None
    assert unpack(packed)[0]["latents"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize("url", ["/srv/fokker", "nowhere://bucket", ""], indirect=False)
def test_a_url_that_is_none_stops_the_start(settings: Settings, url: str):
    with pytest.raises(SettingsError, match="FOKKER_ARTIFACTS"):
        create_app(settings)
    with pytest.raises(SettingsError, match="FOKKER_ARTIFACTS"):
        RedisWorkerStore(settings, "w", lambda job_id: None)


def test_files_of_a_setting_that_was_taken_back_are_not_mistaken(settings: Settings, url: str):
    kept = open_artifacts(settings).put("job", "0.png", b"x")
    with pytest.raises(ArtifactsError, match="FOKKER_ARTIFACTS"):
        open_artifacts(settings.model_copy(update={"artifacts": None})).open(kept)
    content = open_artifacts(settings).open(b"of before the setting")
    assert content is not None
    assert content.read() == b"of before the setting"

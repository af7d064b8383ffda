"""Where artifacts are kept makes no difference: with their jobs, or in files."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.jobs.errors import StoreError
from service.jobs.lease import Claim, LeaseLost, WorkerStore
from service.jobs.store import JobStore
from service.settings import Settings
from tests.service.contract.conftest import Claimed, MakeWorker
from tests.service.helpers import LIMIT, a_job, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(params=["with the job", "in files"])
def settings(request: pytest.FixtureRequest, settings: Settings, folder: Path) -> Settings:
    files = f"file://{folder}" if request.param == "in files" else None
    return settings.model_copy(update={"artifacts": files, "job_ttl": 1})


@pytest.fixture
def files(folder: Path) -> Callable[[], list[str]]:
    """`files()`: the bytes of all files that there are, as text."""
    return lambda: sorted(path.read_text() for path in folder.rglob("*") if path.is_file())


async def bytes_of(store: JobStore, claim: Claim, name: str = "0.png") -> bytes | None:
    found = await store.artifact(claim.job.id, name)
    return found and found[1].read()


async def test_an_artifact_has_its_type_its_size_and_its_bytes(store: JobStore, claim: Claimed):
    await store.submit(a_job())
    owned = claim()
    large = os.urandom(3 * 2**20 + 5)
    for name, data in (("0.png", b"\x89PNG"), ("empty.npy", b""), ("large.npy", large)):
        owned.put_artifact(name, "image/png", data)
        found = await store.artifact(owned.job.id, name)
        assert found is not None
        assert (found[0], found[1].size) == ("image/png", len(data))
        assert found[1].read() == data
    assert await store.artifact(owned.job.id, "1.png") is None
    owned.put_artifact("0.png", "image/webp", b"again")
    assert await bytes_of(store, owned) == b"again"
    job = await store.get(owned.job.id)
    assert job is not None
    assert job.artifacts["0.png"] == "image/webp"


async def test_a_worker_that_lost_its_lease_replaces_and_leaves_nothing(
    store: JobStore, quick: WorkerStore, claim: Claimed, files: Callable[[], list[str]]
):
    await store.submit(a_job())
    late = claim(quick)
    late.put_artifact("0.png", "image/png", b"in time")
    until(quick.reap)
    before = files()
    for name in ("0.png", "1.png"):
        with pytest.raises(LeaseLost):
            late.put_artifact(name, "image/png", b"late")
    owner = claim(quick)
    owner.put_artifact("0.png", "image/png", b"the owner's")
    with pytest.raises(LeaseLost):
        late.put_artifact("0.png", "image/png", b"late")
    assert await bytes_of(store, owner) == b"the owner's"
    assert await bytes_of(store, owner, "1.png") is None
    assert files() == sorted([*before, "the owner's"] if before else [])


async def test_a_lost_answer_costs_no_second_file(
    store: JobStore,
    worker: WorkerStore,
    claim: Claimed,
    files: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    await store.submit(a_job())
    owned, write = claim(), worker.write_artifact

    def deaf(*args: Any) -> bool:
        write(*args)
        raise StoreError("the answer is lost")

    monkeypatch.setattr(worker, "write_artifact", deaf)
    for _ in range(3):
        with pytest.raises(StoreError):
            owned.put_artifact("0.png", "image/png", b"x")
    monkeypatch.undo()
    owned.put_artifact("0.png", "image/png", b"x")
    assert await bytes_of(store, owned) == b"x"
    assert files() in ([], ["x"])


async def test_a_file_that_was_entered_outlives_its_worker_s_doubt(
    store: JobStore, quick: WorkerStore, claim: Claimed, monkeypatch: pytest.MonkeyPatch
):
    """Entered, but the answer was lost, and so was the lease when it was tried again."""
    await store.submit(a_job())
    late, write = claim(quick), quick.write_artifact

    def deaf(*args: Any) -> bool:
        write(*args)
        raise StoreError("the answer is lost")

    monkeypatch.setattr(quick, "write_artifact", deaf)
    with pytest.raises(StoreError):
        late.put_artifact("0.png", "image/png", b"entered")
    monkeypatch.undo()
    until(quick.reap)
    with pytest.raises(LeaseLost):
        late.put_artifact("0.png", "image/png", b"entered")
    assert await bytes_of(store, late) == b"entered"


async def test_the_files_of_a_deleted_job_go_with_it(
    store: JobStore, claim: Claimed, files: Callable[[], list[str]]
):
    for _ in range(3):
        await store.submit(a_job())
    ended, runs, stays = (claim() for _ in range(3))
    for owned in (ended, runs, stays):
        owned.put_artifact("0.png", "image/png", b"x")
    ended.succeed({})
    for owned in (ended, runs):
        await store.delete(owned.job.id)
        assert await bytes_of(store, owned) is None
    with pytest.raises(LeaseLost):
        runs.put_artifact("1.png", "image/png", b"late")
    assert await bytes_of(store, stays) == b"x"
    assert files() in ([], ["x"])


async def test_the_files_of_expired_jobs_are_swept_and_no_others(
    store: JobStore, claim: Claimed, files: Callable[[], list[str]], folder: Path
):
    for _ in range(2):
        await store.submit(a_job())
    ended, runs = claim(), claim()
    for owned, data in ((ended, b"ended"), (runs, b"runs")):
        owned.put_artifact("0.png", "image/png", data)
    in_files = bool(files())
    for name, text in (("notes.txt", "a stranger's"), ("job/1-x/0.png", "another's")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    ended.succeed({})
    assert await store.sweep() == 0
    async with asyncio.timeout(LIMIT):
        while await store.get(ended.job.id) is not None:
            await asyncio.sleep(0.05)
    swept = 0
    async with asyncio.timeout(LIMIT):
        while in_files and not (swept := await store.sweep()):
            await asyncio.sleep(0.05)
    assert swept == in_files
    assert await bytes_of(store, runs) == b"runs"
    assert files() == sorted(["a stranger's", "another's", *(["runs"] if in_files else [])])
    assert not (folder / ended.job.id).exists()


async def test_the_files_of_a_job_that_nobody_knows_stay_for_a_lifetime(
    store: JobStore, claim: Claimed, files: Callable[[], list[str]], make_worker: MakeWorker
):
    """They may be of another deployment, which shares the place by mistake."""
    await store.submit(a_job())
    owned = claim()
    owned.put_artifact("0.png", "image/png", b"x")
    await store.forget(owned.job.id)
    kept = files()
    patient = store.settings.model_copy(update={"job_ttl": 60})
    store.settings = patient
    await store.sweep()
    assert files() == kept

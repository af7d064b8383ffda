"""POST /generate over HTTP, with the shipped model."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from tests.e2e.running import Service
from training.data import Dataset

A_LONG_JOB = {"model": "digits", "count": 64, "seed": 1, "sampler": {"name": "ddpm", "steps": 4000}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("of_each", "steps"), [(10, 100), pytest.param(20, 250, marks=pytest.mark.slow)]
)
def test_generated_digits_have_the_class_that_was_asked_for(
    service: Service, data: Dataset, of_each: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"model": "digits", "sampler": {"name": "ddpm", "steps": steps}, "format": "npy"}
    each = [{"count": of_each, "seed": label, "class_label": label} for label in range(10)]
    jobs = [service.submit("/generate", request | changes) for changes in each]
    drawn = [service.array(service.succeeded(job, 240), "images.npy") for job in jobs]
    pixels = np.concatenate(drawn).reshape(-1, 64)
    asked = np.repeat(np.arange(10), of_each)

    real = np.concatenate([split.levels.numpy() for split in (data.train, data.held_out)]).reshape(
        -1, 64
    )
    labels = np.concatenate([split.labels.numpy() for split in (data.train, data.held_out)])
    judge = LogisticRegression(max_iter=2000).fit(real / 16, labels)
    right = float(judge.score(pixels / 16, asked))
    with capsys.disabled():
        print(f"\n  {right:.1%} of {len(asked)} generated digits have the class asked for")
    assert right >= 0.90


def test_the_same_seed_gives_the_same_pngs(service: Service) -> None:
    request = {"model": "digits", "count": 3, "seed": 11, "sampler": {"name": "ddpm", "steps": 40}}
    files = []
    for _ in range(2):
        job = service.succeeded(service.submit("/generate", request))
        names = [image["artifact"] for image in job["result"]["images"]]
        files.append([service.artifact(job, name) for name in [*names, job["result"]["grid"]]])
    assert files[0] == files[1]
    assert len(set(files[0])) == 4, "the images of one job must differ"
    assert Image.open(io.BytesIO(files[0][0])).size == (8, 8)


def test_previews_arrive_while_the_job_runs(service: Service) -> None:
    request = {"model": "digits", "count": 4, "seed": 2, "sampler": {"name": "ddpm", "steps": 400}}
    job = service.submit("/generate", request | {"stream": {"every": 40, "what": "x0"}})
    calls, statuses = [], []
    for event in service.events(job):
        if event.event == "preview":
            preview = json.loads(event.data)
            calls.append(preview["calls"])
            statuses.append(service.get(job)["status"])
            assert [image["index"] for image in preview["images"]] == [0, 1, 2, 3]
            picture = Image.open(io.BytesIO(base64.b64decode(preview["images"][0]["png"])))
            assert picture.size == (8, 8)
    assert event.event == "succeeded"
    assert calls == list(range(40, 401, 40))
    assert statuses[0] == "running"


def test_a_cancelled_job_ends_and_the_next_one_runs(service: Service) -> None:
    job = service.submit("/generate", A_LONG_JOB)
    kinds = []
    for event in service.events(job, limit=60):
        if event.event == "step" and "step" not in kinds:
            service.client.post(job["links"]["cancel"]).raise_for_status()
        kinds.append(event.event)
    assert kinds[-1] == "canceled"
    assert service.get(job)["status"] == "canceled"
    short = {"model": "digits", "count": 1, "seed": 3, "sampler": {"name": "ddim", "steps": 10}}
    service.succeeded(service.submit("/generate", short), limit=30)


def test_a_corrupt_checkpoint_is_listed_with_its_reason_and_the_others_serve(
    service: Service,
) -> None:
    listed = service.client.get("/models").json()
    assert "digits" in [model["name"] for model in listed["models"] if model["live"]]
    (failed,) = listed["failed"]
    assert failed["name"] == "broken"
    assert failed["reason"].startswith("broken.safetensors: ")
    refused = service.client.post("/generate", json={"model": "broken"})
    assert refused.status_code == 422
    assert failed["reason"] in refused.json()["detail"]
    assert failed["reason"] in service.client.get("/models/broken").json()["detail"]
    sampler = {"name": "ddim", "steps": 2}
    service.succeeded(service.submit("/generate", {"model": "digits", "sampler": sampler}))

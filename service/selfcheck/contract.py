"""Checks of what is around the numbers: health, models, events, links, and refusals."""

import base64
import json
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from service.client import Job, RequestRefused
from service.client.submission import image_parts
from service.selfcheck.deployment import Deployment
from service.selfcheck.findings import Finding, at_most, same
from service.selfcheck.mixture import MODEL, SHAPE, description

PROMPT = {"Prefer": "wait=30"}
LONG = {"count": 16, "sampler": {"name": "ddpm", "steps": 1000}}
"""A request that is not done before its cancellation comes."""
PATIENCE = 20.0
"""Seconds in which a job must stop that was told to."""


def health(deployment: Deployment) -> Iterator[Finding]:
    """`/healthz`, `/readyz`, and the card of the mixture."""
    answer = deployment.send("GET", "/healthz", keyless=True)
    yield same("/healthz", [answer.status_code, answer.json().get("status")], [200, "ok"])
    answer = deployment.send("GET", "/readyz", keyless=True)
    live = answer.json().get("models", {}).get(MODEL)
    yield same("/readyz: the model has a worker", [answer.status_code, live], [200, True])
    expected = json.loads(json.dumps(_card()))
    card = deployment.client.model(MODEL)
    yield same("its card", {name: card.get(name) for name in expected}, expected)
    listed = [model["name"] for model in deployment.client.models()]
    yield same("it is listed", MODEL in listed, True)
    if deployment.asks_for_a_key:
        answer = deployment.send("GET", "/models", keyless=True)
        yield same("/models without the key", answer.status_code, 401)


def events(deployment: Deployment) -> Iterator[Finding]:
    """A job's events in their order, once each, and again from any of them."""
    steps, every = 60, 20
    request = {"count": 2, "seed": 1, "sampler": {"name": "ddim", "steps": steps}}
    job = deployment.submit("generate", request | {"stream": {"every": every, "what": "x0"}})
    told = list(deployment.client.events(job))
    types = [event.type for event in told]
    around = [*types[:2], *types[-1:]]
    yield same("first and last events", around, ["queued", "started", "succeeded"])
    yield same("those between", sorted(set(types[2:-1]) - {"step"}), ["preview"])
    ids = [tuple(map(int, event.id.split("-"))) for event in told]
    yield same("each once, and their ids grow", ids, sorted(set(ids)))
    calls = [event.data["calls"] for event in told if event.type == "preview"]
    # A service may send fewer: their rate is bounded.
    yield same("previews at calls", set(calls) <= set(range(every, steps + 1, every)), True)
    shown = [event.previews() for event in told if event.type == "preview"]
    sizes = {picture.size for pictures in shown for picture in pictures.values()}
    yield same("their pictures' sizes", sorted(sizes), [SHAPE[1:]])
    progress = [event.progress for event in told if event.progress is not None]
    yield same("progress grows", progress == sorted(progress) and bool(progress), True)
    middle = len(told) // 2
    rest = list(deployment.client.events(job, after=told[middle].id))
    yield same("again from the middle", rest == told[middle + 1 :], True)
    headers = {"Accept": "text/event-stream", "Prefer": "respond-async"}
    answer = deployment.send("POST", "/generate", json={"model": MODEL, **request}, headers=headers)
    lines = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    yield same("of a POST that streams, the last", lines[-1:], ["event: succeeded"])
    deployment.note(deployment.client.job(answer.headers["Location"].rpartition("/")[2]))


def submission(deployment: Deployment) -> Iterator[Finding]:
    """Ways to submit: at once or waiting, as JSON alone, and twice under one key."""
    request = {"model": MODEL, "seed": 2, "sampler": {"name": "ddim", "steps": 10}}
    answer = deployment.send("POST", "/generate", json=request)
    job = _note(deployment, answer.json())
    found = [answer.status_code, answer.headers.get("Location", "").endswith(f"/jobs/{job.id}")]
    yield same("202 with its Location", found, [202, True])
    answer = deployment.send("POST", "/generate", json=request, headers=PROMPT)
    found = [answer.status_code, _note(deployment, answer.json()).status]
    yield same("200 where the request waits", found, [200, "succeeded"])
    ((_, (_, image, _)),) = image_parts(np.full(SHAPE, 100.0))
    body = {"model": MODEL, "images": [base64.b64encode(image).decode()]}
    answer = deployment.send("POST", "/invert", json=body, headers=PROMPT)
    yield same("images as base64", _note(deployment, answer.json()).status, "succeeded")
    headers = {"Idempotency-Key": f"selfcheck-{job.id}"}
    sent = [deployment.send("POST", "/generate", json=request, headers=headers) for _ in range(3)]
    ids = {_note(deployment, answer.json()).id for answer in sent}
    yield same("jobs of one Idempotency-Key", len(ids), 1)
    answer = deployment.send("POST", "/generate", json=request | {"seed": 3}, headers=headers)
    yield _refused("the key with other content", answer, 422, "Idempotency-Key")
    listed = {job.id for job in islice(deployment.client.jobs(page=50), 200)}
    yield same("GET /jobs has them", ids <= listed, True)


def ending(deployment: Deployment) -> Iterator[Finding]:
    """Jobs that are canceled, run into their deadline, are removed."""
    job = deployment.submit("generate", LONG)
    begun = time.monotonic()
    deployment.client.cancel(job)
    yield same("canceled", deployment.client.wait(job).status, "canceled")
    yield at_most("seconds that took", time.monotonic() - begun, PATIENCE)
    begun = time.monotonic()
    ended = deployment.client.wait(deployment.submit("generate", LONG, deadline="50ms"))
    late = [ended.status, ended.document["cancel_reason"]]
    yield same("past its deadline", ended.status in ("canceled", "aborted"), True)
    yield same("because of it", late[0] == "aborted" or late[1] == "deadline", True)
    yield at_most("seconds that took", time.monotonic() - begun, PATIENCE)
    deployment.client.delete(ended)
    answer = deployment.send("GET", f"/jobs/{ended.id}")
    yield _refused("a job that was removed", answer, 404)


def links(deployment: Deployment) -> Iterator[Finding]:
    """Signed links work without a key, and only as they were signed."""
    drawn = deployment.generate({"count": 1, "sampler": {"name": "ddim", "steps": 10}})
    name = drawn.job.artifacts[0]
    plain = deployment.client.artifact(drawn.job, name)
    signed = drawn.job.document["links"]["signed"]["artifacts"][name]
    answer = deployment.send("GET", signed, keyless=True)
    yield same("a signed artifact", answer.status_code == 200 and answer.content == plain, True)
    altered = signed[:-2] + ("AA" if signed[-2:] != "AA" else "BB")
    yield _refused("a signature altered", deployment.send("GET", altered, keyless=True), 403)
    answer = deployment.send("GET", drawn.job.document["links"]["signed"]["events"], keyless=True)
    yield same("signed events", answer.status_code, 200)
    if deployment.asks_for_a_key:
        bare = drawn.job.document["links"]["artifacts"][name]
        answer = deployment.send("GET", bare, keyless=True)
        yield _refused("an artifact without the key", answer, 401)


def refusals(deployment: Deployment) -> Iterator[Finding]:
    """Requests that cannot be met, each with a problem document that names the field."""
    for field, request in BAD.items():
        answer = deployment.send("POST", "/generate", json={"model": MODEL} | request)
        yield _refused(f"{field} = {json.dumps(request)}", answer, 422, field)
    answer = deployment.send("POST", "/generate", content=b"{", headers=JSON)
    yield _refused("half a JSON document", answer, 400)
    answer = deployment.send("POST", "/generate", content=b"x", headers=TEXT)
    yield _refused("text", answer, 415)
    files = {"request": (None, json.dumps({"model": MODEL})), "image": ("0.png", b"no picture")}
    yield _refused("no picture", deployment.send("POST", "/invert", files=files), 422, "images[0]")
    yield _refused("a job that never was", deployment.send("GET", "/jobs/none"), 404)
    yield _refused("a model that is not there", deployment.send("GET", "/models/none"), 404)
    try:
        deployment.submit("generate", {"count": 0})
        raised = None
    except RequestRefused as error:
        raised = error.status
    yield same("the client's error for a refusal", raised, 422)


JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}

BAD: dict[str, dict[str, Any]] = {
    "model": {"model": "none-such"},
    "count": {"count": 0},
    "class_label": {"class_label": 3},
    "guidance": {"guidance": 2.0},
    "sampler.steps": {"sampler": {"name": "ddpm", "steps": 0}},
    "init": {"init": {"latents": {"job": "none"}}},
    "colour": {"colour": "red"},
}
"""Requests to /generate, by the field that is wrong with each."""


def _card() -> dict[str, Any]:
    document = description()
    names = ("architecture", "process", "prediction")
    return {"name": MODEL, **{name: document[name] for name in names}, **document["data"]}


def _refused(what: str, answer: Any, status: int, field: str | None = None) -> Finding:
    """An answer that must be a problem document, which names a field."""
    found: list[Any] = [answer.status_code]
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    if kind != "application/problem+json":
        return same(what, [*found, kind], [status, "application/problem+json"])
    document = answer.json()
    if document.get("status") != answer.status_code or not document.get("detail"):
        found.append("without status and detail")
    if field is not None:
        found += [error.get("field") for error in document.get("errors", [{}])]
    return same(what, found, [status] if field is None else [status, field])


def _note(deployment: Deployment, document: dict[str, Any]) -> Job:
    return deployment.note(Job.of(document))

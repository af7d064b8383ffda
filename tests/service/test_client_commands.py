"""The client's commands against the real API, and what their options make of a request."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from service.client_commands import register_client
from service.client_commands.request import build, ode_solver, sampler
from service.jobs.lease import Claim, WorkerStore
from tests.service.clients import Serve, draw, encode, likelihoods
from tests.service.helpers import CARDS, LIMIT, ROOMS, until
from tests.service.network import Gate, document
from tests.service.uploads import GREY, npy, png

Fokker = Callable[..., Result]


@pytest.fixture
def fokker(url: str) -> Fokker:
    """`fokker("generate", …)`: run the command against the API."""
    app = typer.Typer()
    register_client(app)

    def run(*arguments: object) -> Result:
        environment = {"FOKKER_URL": url}
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return run


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    path.write_bytes(png())
    return path


def request_of(fokker: Fokker, url: str, *arguments: object) -> dict[str, Any]:
    """The parameters of the job that a command submits."""
    result = fokker(*arguments, "--no-wait")
    assert result.exit_code == 0, result.output
    job = httpx.get(f"{url}/jobs/{result.stdout.strip()}", trust_env=False).json()
    return job["parameters"]


HEUN = {"name": "heun", "steps": 50}
LOOSE = {"name": "adaptive", "tolerance": 1e-3}


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        ({}, ("pf_ode", 50, "heun", None), {"name": "pf_ode", "solver": HEUN}),
        ({}, (None, 50, "heun", None), {"name": "pf_ode", "solver": HEUN}),
        ({}, (None, None, None, 1e-3), {"name": "pf_ode", "solver": LOOSE}),
        ({}, ("ddim", 20, None, None), {"name": "ddim", "steps": 20}),
        ({"sampler": {"name": "ddim"}}, (None, 20, None, None), {"steps": 20}),
        ({"sampler": "pf_ode"}, (None, 50, "heun", None), {"solver": HEUN}),
        ({}, (None, None, None, None), None),
    ],
)
def test_options_of_a_sampler_find_their_place(
    base: dict[str, Any], options: tuple[Any, ...], expected: dict[str, Any] | None
):
    assert sampler(base, *options) == expected


def test_options_lie_over_the_request_and_settings_over_both():
    base = {"model": "digits", "count": 2, "sampler": {"name": "ddim", "eta": 1.0}}
    named = {"count": 3, "seed": None, "sampler": {"steps": 20}}
    settings = ["sampler.eta=0.5", "stream.every=5", "stream.what=xt", "class_label=null"]
    assert build(base, named, settings) == {
        "model": "digits",
        "count": 3,
        "class_label": None,
        "sampler": {"name": "ddim", "eta": 0.5, "steps": 20},
        "stream": {"every": 5, "what": "xt"},
    }


def test_another_sampler_takes_nothing_of_the_one_in_the_request():
    base = {"sampler": {"name": "ddpm", "clip": True}, "solver": {"steps": 5}}
    named = {"sampler": {"name": "langevin"}, "solver": ode_solver("heun", None, None)}
    assert build(base, named, []) == {
        "sampler": {"name": "langevin"},
        "solver": {"name": "heun", "steps": 5},
    }


def test_every_option_of_generate_reaches_the_request(fokker: Fokker, url: str, tmp_path: Path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"model": "digits", "count": 1, "stream": {"every": 7}}))
    arguments = (
        *("generate", "--request", f"@{request}", "-n", 2, "--seed", 5, "--class", 3),
        *("--guidance", 2.5, "--sampler", "pf_ode", "--solver", "heun", "--steps", 50),
        *("--format", "npy", "--priority", "batch", "--set", "sampler.solver.grid=karras"),
    )
    assert request_of(fokker, url, *arguments) == {
        "model": "digits",
        "priority": "batch",
        "class_label": 3,
        "guidance": 2.5,
        "count": 2,
        "seed": 5,
        "seeds": None,
        "sampler": {
            "name": "pf_ode",
            "solver": {"name": "heun", "steps": 50, "grid": "karras"},
        },
        "init": None,
        "stream": {"every": 7, "what": "x0"},
        "format": "npy",
        "grid": None,
        "webhook": None,
    }


def test_the_options_of_invert_and_loglik_reach_the_request(fokker: Fokker, url: str, digit: Path):
    invert = ("invert", digit, "-m", "digits", "--solver", "reversible", "--steps", 9)
    assert request_of(fokker, url, *invert, "--class", 3)["solver"]["steps"] == 9
    assert request_of(fokker, url, *invert, "--fit", "crop")["fit"] == "crop"
    loglik = ("loglik", digit, "-m", "digits", "--tolerance", 1e-2)
    asked = request_of(fokker, url, *loglik, "--probes", 4, "--samples", 2, "--seed", 1)
    assert asked["solver"]["tolerance"] == 1e-2
    assert asked["divergence"]["probes"] == 4
    assert (asked["dequantization"], asked["seed"]) == ({"kind": "uniform", "samples": 2}, 1)
    asked = request_of(fokker, url, *loglik, "--probes", 0, "--samples", 0)
    assert (asked["divergence"], asked["dequantization"]) == ({"kind": "exact"}, None)
    bound = request_of(fokker, url, "loglik", digit, "-m", "digits", "--method", "elbo")
    assert bound["method"] == "elbo"


def test_generate_prints_a_table_and_fills_a_folder(
    fokker: Fokker, serve_one: Serve, tmp_path: Path
):
    serve_one(draw)
    result = fokker("generate", "-m", "digits", "-n", 2, "--out", tmp_path / "new" / "digits")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [
        ["image", "seed", "nfe", "artifact"],
        ["0", "40", "50", "0.png"],
        ["1", "41", "50", "1.png"],
    ]
    for index in range(2):
        saved = Image.open(tmp_path / "new" / "digits" / f"{index}.png")
        np.testing.assert_array_equal(np.asarray(saved), GREY + index)
    assert result.stderr.count("\n") == 1, "a bar where there is no terminal"


@pytest.mark.parametrize("name", ["sheet.png", "sheet.webp"])
def test_several_images_become_one_sheet_in_a_file(
    fokker: Fokker, serve_one: Serve, tmp_path: Path, name: str
):
    def work(claim: Claim) -> None:
        claim.put_artifact("grid.png", "image/png", png(np.tile(GREY, 2)))
        draw(claim)

    serve_one(work)
    result = fokker("generate", "-m", "digits", "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    saved = Image.open(tmp_path / name)
    assert saved.format == name.split(".")[1].upper()
    np.testing.assert_array_equal(np.asarray(saved.convert("L")), np.tile(GREY, 2))


def test_a_file_s_name_asks_for_its_format(fokker: Fokker, serve_one: Serve, tmp_path: Path):
    formats: list[str] = []

    def work(claim: Claim) -> None:
        formats.append(claim.job.parameters["format"])
        claim.put_artifact("images.npy", "application/x-npy", npy(GREY[None, None]))
        entry = {"index": 0, "seed": 1, "nfe": 9, "artifact": "images.npy"}
        claim.succeed({"images": [entry], "grid": None})

    serve_one(work)
    result = fokker("generate", "-m", "digits", "--out", tmp_path / "drawn.npy")
    assert result.exit_code == 0, result.output
    assert formats == ["npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "drawn.npy")[0, 0], GREY)
    result = fokker("generate", "-m", "digits", "--out", "drawn.npy", "--format", "png")
    assert result.exit_code == 2


def test_a_folder_that_exists_may_be_called_anything(
    fokker: Fokker, serve_one: Serve, tmp_path: Path
):
    serve_one(draw)
    folder = tmp_path / "v1.2"
    folder.mkdir()
    result = fokker("generate", "-m", "digits", "--out", folder)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png"]


def test_latents_become_an_array_in_a_file_that_is_named_so(fokker: Fokker, url: str, digit: Path):
    asked = request_of(fokker, url, "invert", digit, "-m", "digits", "--out", "z.npy")
    assert asked["format"] == "npy"


def test_invert_keeps_the_latents_which_generate_takes(
    fokker: Fokker, url: str, serve_one: Serve, digit: Path, tmp_path: Path
):
    serve_one(encode)
    out = tmp_path / "z.safetensors"
    result = fokker("invert", digit, "-m", "digits", "--out", out)
    assert result.exit_code == 0, result.output
    head, row = (line.split() for line in result.stdout.splitlines())
    assert dict(zip(head, row, strict=False))["round_trip_rmse"] == "0.25"
    assert row[0] == "digit.png"
    assert load_file(out)["latents"].shape == (1, 1, 8, 8)
    asked = request_of(fokker, url, "generate", "-m", "digits", "--latents", out)
    assert (asked["count"], asked["sampler"]["name"]) == (1, "pf_ode")


def test_loglik_prints_figures_and_their_errors(fokker: Fokker, serve_one: Serve, digit: Path):
    serve_one(likelihoods)
    result = fokker("loglik", digit, digit, "-m", "digits", "--deadline", "1h")
    assert result.exit_code == 0, result.output
    _, known, none = result.stdout.splitlines()
    assert known.split() == ["digit.png", "1.75", "57.5", "±2.5", "(probe)", "56"]
    assert none.split() == ["digit.png", "±2.5", "(probe)", "56"]


def test_json_is_all_that_is_printed(fokker: Fokker, serve_one: Serve):
    serve_one(draw)
    result = fokker("generate", "-m", "digits", "--json")
    assert result.exit_code == 0, result.output
    job = json.loads(result.stdout)
    assert (job["status"], job["result"]["images"][1]["seed"]) == ("succeeded", 41)
    assert result.stderr == ""


def test_a_failed_job_exits_with_1_and_is_still_printed(fokker: Fokker, serve_one: Serve):
    serve_one(lambda claim: claim.fail({"title": "Failed", "detail": "out of memory"}))
    result = fokker("generate", "-m", "digits", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"
    assert "out of memory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "-m", "digits", "--class", 11), "classes 0..9"),
        (("generate", "-m", "digits", "--deadline", "soon"), "Cancel-After"),
        (("generate", "--set", "model"), "FIELD=VALUE"),
        (("generate", "-m", "digits", "--out", "x.bmp"), ".png, .webp, .npy, .safetensors"),
        (("invert", __file__, "-m", "digits", "--out", "x.png"), ".safetensors, .npy"),
        (("generate", "--request", "{"), "--request"),
        (("generate", "--request", "[]"), "JSON object"),
        (("invert", "nowhere.png", "-m", "digits"), "nowhere.png"),
        (("jobs", "show", "nobody"), "no job nobody"),
        (("jobs", "--limit", 3, "show", "nobody"), "jobs show"),
        (("models", "--url", "ftp://here"), "url: "),
    ],
)
def test_what_is_refused_exits_with_2_and_says_why(
    fokker: Fokker, arguments: tuple[object, ...], said: str
):
    result = fokker(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_service_that_is_away_exits_with_3(
    fokker: Fokker, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    gate.answers = [document({"detail": "the queue is full"}, 503, **{"Retry-After": "999"})]
    result = fokker("generate", "-m", "digits")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "queue is full" in result.stderr
    monkeypatch.setattr("service.client.retries.FIRST_PAUSE", 0.01)
    result = fokker("models", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "fokker up" in result.stderr


def read_all(terminal: int, shown: bytearray) -> None:
    with suppress(OSError), open(terminal, "rb", buffering=0) as file:
        while found := file.read(4096):
            shown += found


def test_an_interrupt_cancels_the_job_and_exits_with_130(url: str, worker: WorkerStore):
    """On a terminal, where a bar shows the job's progress until then."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "service", "generate", "-m", "digits"],
        env=os.environ | {"FOKKER_URL": url, "COLUMNS": "100", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        claim = until(lambda: worker.claim(["sha256:digits"], ROOMS))
        claim.event("step", {"calls": 99, "progress": 0.42})
        shown = bytearray()
        # To the end: a bar that nobody reads fills the terminal, and its writer then waits.
        threading.Thread(target=read_all, args=(controller, shown), daemon=True).start()
        until(lambda: b"42%" in shown)
        assert "generate running" in shown.decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert worker.canceled() == {claim.job.id: "requested"}


def test_models_are_listed_and_shown(fokker: Fokker):
    lines = fokker("models").stdout.splitlines()
    assert lines[1].split()[:4] == ["digits", "yes", "1x8x8", "17"]
    assert json.loads(fokker("models", "faces").stdout)["levels"] == 256
    assert len(json.loads(fokker("models", "--json").stdout)["models"]) == len(CARDS)


def test_jobs_are_listed_shown_and_canceled(fokker: Fokker, gate: Gate):
    job_id = fokker("generate", "-m", "digits", "--no-wait").stdout.strip()
    job = json.loads(fokker("jobs", "show", job_id, "--json").stdout)
    assert (job["id"], job["status"]) == (job_id, "queued")
    head, row = fokker("jobs", "--status", "queued", "--limit", 1).stdout.splitlines()
    assert head.split() == ["id", "status", "operation", "model", "created"]
    assert row.split()[:4] == [job_id, "queued", "generate", "digits"]
    assert gate.seen[-1].query == "status=queued&limit=1"
    assert fokker("jobs", "cancel", job_id).stderr == f"{job_id} canceled\n"
    shown = dict(
        line.split()[:2] for line in fokker("jobs", "show", job_id).stdout.splitlines()[:5]
    )
    assert shown["status"] == "canceled"
    assert fokker("jobs", "delete", job_id).stderr == f"{job_id} deleted\n"
    assert fokker("jobs").stdout.splitlines()[1:] == []


def test_a_job_s_events_and_files_can_be_had_later(
    fokker: Fokker, serve_one: Serve, tmp_path: Path
):
    job_id = fokker("generate", "-m", "digits", "--no-wait").stdout.strip()
    serve_one(draw)
    lines = fokker("jobs", "events", job_id, "--json").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [event["type"] for event in told] == ["queued", "started", "succeeded"]
    plain = fokker("jobs", "events", job_id, "--after", told[0]["id"]).stdout.splitlines()
    assert [line.split()[:2] for line in plain] == [
        [event["id"], event["type"]] for event in told[1:]
    ]
    saved = fokker("jobs", "save", job_id, tmp_path / "kept").stdout.split()
    assert [Path(path).name for path in saved] == ["0.png", "1.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(saved[1])), GREY + 1)

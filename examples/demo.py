"""A tour of Fokker: starts it with the shipped digits model and asks all three endpoints.

scripts/demo           runs and exits; writes out/generate.png
scripts/demo --keep    leaves the server up, and prints its address, until Ctrl-C
"""

import argparse
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import terminal
from httpx_sse import connect_sse
from PIL import Image
from rich.console import Console
from rich.table import Table

from training.config import Config
from training.data import digits

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
LEVELS = 17  # the digits' grey levels, 0..16
TO_UNITS = 2 / LEVELS  # the model's space is [-1, 1]
DECODER = {"name": "pf_ode", "solver": {"name": "adaptive", "tolerance": 1e-6}}

console = Console(highlight=False)


class DemoError(RuntimeError):
    """A step failed; the message says which, and why."""


@contextmanager
def fokker_up() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `fokker up` on a free port; gives its address when it is ready, stops it at the end."""
    log = OUT / "demo.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "up", "--port", "0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # a Ctrl-C is ours to pass on
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()  # ends, empty, if the process does
        address = re.search(r"http://\S+", line)
        if address is None:
            raise DemoError(f"fokker up did not start; the end of {log}:\n{tail(log)}")
        console.print(line.replace("; Ctrl-C stops it", ""))
        yield address[0], process
    finally:
        process.terminate()
        process.wait()


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def submit(client: httpx.Client, path: str, request: dict[str, Any], images: Any = ()) -> str:
    """POST a request, its images as `.npy` files, and return the address of its job."""
    if len(images):
        # A part with a file name is a file; the request is a plain field beside them.
        files = [("image", (f"{i}.npy", npy(image))) for i, image in enumerate(images)]
        response = client.post(path, data={"request": json.dumps(request)}, files=files)
    else:
        response = client.post(path, json=request)
    if response.is_error:
        raise DemoError(f"POST {path} answered {response.status_code}: {response.text}")
    return response.headers["Location"]


def npy(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, image)
    return buffer.getvalue()


def follow(
    client: httpx.Client, job: str, title: str, on_preview: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Follow a job's events to the last one; return the job. Calls `on_preview` on previews."""
    with (
        terminal.watch(console, title) as view,
        connect_sse(client, "GET", f"{job}/events") as source,
    ):
        for event in source.iter_sse():
            data = json.loads(event.data)
            if event.event == "preview":
                on_preview(data)
                view.show(data["images"])
            if "progress" in data:
                view.advance(data["progress"], data["calls"])
    finished: dict[str, Any] = client.get(job).json()
    if finished["status"] != "succeeded":
        why = (finished["error"] or {}).get("detail", "no reason was given")
        raise DemoError(f"{title}: the job ended as {finished['status']}: {why}")
    return finished


def generate(client: httpx.Client) -> None:
    console.rule("POST /generate: 16 digits by ancestral sampling, watched as they denoise")
    request = {
        "model": "digits",
        "count": 16,
        "seed": 7,
        "sampler": {"name": "ddpm", "steps": 250},
        "stream": {"every": 5, "what": "x0"},
    }
    previews: list[int] = []
    job = follow(
        client,
        submit(client, "/generate", request),
        "generate",
        lambda p: previews.append(p["calls"]),
    )
    if not previews:
        raise DemoError("generate: not one preview came while the job ran")
    grid = Image.open(io.BytesIO(artifact(client, job, job["result"]["grid"])))
    grid.resize((grid.width * 10, grid.height * 10), Image.Resampling.NEAREST).save(
        OUT / "generate.png"
    )
    console.print(f"{len(previews)} previews; the digits are in {OUT / 'generate.png'}\n")


def artifact(client: httpx.Client, job: dict[str, Any], name: str) -> bytes:
    return client.get(job["links"]["artifacts"][name]).raise_for_status().content


def round_trip(client: httpx.Client, real: np.ndarray) -> None:
    console.rule("POST /invert and back: 16 real digits to their latents, and decoded again")
    solver = DECODER["solver"]
    encoded = follow(
        client,
        submit(client, "/invert", {"model": "digits", "solver": solver}, real),
        "invert",
        ignore,
    )
    latents = {"job": encoded["id"], "name": "latents.safetensors"}
    request = {"model": "digits", "sampler": DECODER, "init": {"latents": latents}, "format": "npy"}
    decoded = follow(client, submit(client, "/generate", request), "decode", ignore)
    again = np.load(io.BytesIO(artifact(client, decoded, "images.npy")))[:, 0]
    error = np.abs(again - real)  # in grey levels
    console.print(
        f"round-trip error: max {error.max() * TO_UNITS:.2g}, median "
        f"{np.median(error) * TO_UNITS:.2g} in [-1, 1] units; "
        f"max {error.max():.2g}, median {np.median(error):.2g} of the {LEVELS} grey levels\n"
    )


def ignore(preview: dict[str, Any]) -> None:
    """Only /generate is asked for previews here."""


def likelihoods(client: httpx.Client, real: np.ndarray) -> None:
    console.rule("POST /loglik: how likely the model finds digits, and what is none")
    random = np.random.default_rng(0)
    groups = {
        "held-out digits": real,
        "the same, pixels shuffled": random.permuted(real.reshape(len(real), -1), axis=1).reshape(
            real.shape
        ),
        "uniform noise": random.integers(0, LEVELS, real.shape).astype(float),
    }
    divergence = {"kind": "hutchinson", "probes": 4}  # the default, 8, takes twice as long
    request = {"model": "digits", "seed": 0, "divergence": divergence}
    location = submit(client, "/loglik", request, np.concatenate(list(groups.values())))
    images = follow(client, location, "loglik", ignore)["result"]["images"]
    bits = np.reshape([image["bits_per_dim"] for image in images], (len(groups), len(real)))
    table = Table("images", "bits/dim, mean ± standard error", box=None)
    for name, row in zip(groups, bits, strict=True):
        table.add_row(name, f"{row.mean():.2f} ± {row.std(ddof=1) / np.sqrt(len(row)):.2f}")
    console.print(table)
    console.print()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the server up until Ctrl-C")
    keep = parser.parse_args().keep
    OUT.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, too
    split = Config.read(ROOT / "training" / "configs" / "digits.toml").data.held_out
    real = digits(split).held_out.levels.numpy()[:16, 0]  # (16, 8, 8), levels 0..16
    try:
        with fokker_up() as (address, server), httpx.Client(base_url=address, timeout=60) as client:
            generate(client)
            round_trip(client, real)
            likelihoods(client, real[:8])
            if keep:
                console.print(f"Fokker stays up on {address} (Ctrl-C stops it). Try:\n")
                body = json.dumps({"model": "digits", "class_label": 3, "count": 4})
                print(f"  curl -H 'Prefer: wait=30' --json '{body}' {address}/generate\n")
                server.wait()
    except KeyboardInterrupt:
        return 0 if keep else 130
    except (DemoError, httpx.HTTPError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    console.print("Everything that was started is stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The client and its commands against the running system, with the shipped model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.client import Client, Event
from tests.e2e.running import JOB_LIMIT, Service, npy
from training.data import Dataset

UNIT = 2 / 17  # one grey level in [-1, 1] units
SOLVER = {"name": "reversible", "steps": 10}


def fokker(service: Service, *arguments: object) -> str:
    """What a command prints; fails if it does not exit with 0."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "service", *map(str, arguments)],
        env=os.environ | {"FOKKER_URL": str(service.client.base_url)},
        capture_output=True,
        text=True,
        timeout=JOB_LIMIT,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.timeout(400)
def test_a_tour_through_the_client(service: Service, data: Dataset) -> None:
    real = data.held_out.levels.numpy()[:2, 0]  # (2, 8, 8)
    events: list[Event] = []
    with Client(str(service.client.base_url)) as client:
        assert client.ready()
        assert client.model("digits")["levels"] == 17
        drawn = client.generate(
            "digits",
            count=3,
            seed=7,
            sampler={"name": "ddim", "steps": 20},
            stream={"every": 10},
            on_event=events.append,
        )
        assert drawn.array.shape == (3, 8, 8, 1)
        assert len(set(drawn.seeds)) == 3
        previews = [event.previews() for event in events if event.type == "preview"]
        assert [sorted(shown) for shown in previews] == [[0, 1, 2], [0, 1, 2]]

        inverted = client.invert(real, model="digits", solver=SOLVER)
        assert inverted.round_trip_max_error.max() < 1e-6
        decoded = client.generate("digits", latents=inverted, format="npy")
        assert np.abs(decoded.array[..., 0] - real).max() * UNIT < 1e-6

        shuffled = np.random.default_rng(0).permuted(real.reshape(2, 64), axis=1).reshape(2, 8, 8)
        found = client.loglik(
            np.concatenate([real, shuffled]),
            model="digits",
            seed=1,
            solver={"name": "adaptive", "tolerance": 1e-2},
            divergence={"kind": "hutchinson", "probes": 2},
        )
        assert found.converged.all()
        assert found.bits_per_dim[2:].mean() > found.bits_per_dim[:2].mean() + 1.0
        total = found.terms["prior"] + found.terms["volume"]
        np.testing.assert_allclose(total, found.log_likelihood, rtol=1e-9)


@pytest.mark.timeout(400)
def test_a_tour_on_the_command_line(service: Service, data: Dataset, tmp_path: Path) -> None:
    real = data.held_out.levels.numpy()[0, 0]
    digit, latents = tmp_path / "digit.npy", tmp_path / "z.safetensors"
    digit.write_bytes(npy(real))
    solver = ("--solver", SOLVER["name"], "--steps", SOLVER["steps"])

    fokker(service, "invert", digit, "-m", "digits", *solver, "--out", latents)
    again = tmp_path / "again.npy"
    fokker(service, "generate", "-m", "digits", *solver, "--latents", latents, "--out", again)
    assert np.abs(np.load(again)[0, 0] - real).max() * UNIT < 1e-6

    told = fokker(service, "loglik", digit, "-m", "digits", "--tolerance", 1e-2, "--json")
    likelihood = json.loads(told)["result"]["images"][0]
    assert 0.5 < likelihood["bits_per_dim"] < 5.0

    folder = tmp_path / "drawn"
    sampler = ("--sampler", "pf_ode", "--solver", "heun", "--steps", 10)
    fokker(service, "generate", "-m", "digits", "-n", 2, *sampler, "--out", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png"]
    assert "digits" in fokker(service, "models")

"""Two hundred jobs of all kinds at once, on one worker."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from service.redis_server import free_port
from tests.e2e.conftest import empty_database, start_api
from tests.e2e.running import Service, wait_until
from training.data import Dataset
from training.evaluation import class_accuracy

SAMPLERS: list[dict[str, Any]] = [
    {"name": "ddpm", "steps": 30},
    {"name": "ddim", "steps": 20, "eta": 0.5},
    {"name": "reverse_sde", "steps": 40},
    {"name": "predictor_corrector", "steps": 15},
    {"name": "langevin", "steps": 10},
    {"name": "pf_ode", "solver": {"name": "dpmpp_2m", "steps": 15}},
    {"name": "pf_ode", "solver": {"name": "adaptive", "tolerance": 1e-2}},
]
REVERSIBLE = {"name": "reversible", "steps": 5}


def generation(index: int) -> dict[str, Any]:
    return {
        "model": "digits",
        "count": 1 + index % 3,
        "seed": index,
        "class_label": index % 10,
        "guidance": 2.0 if index % 5 == 0 else 1.0,
        "priority": "batch" if index % 4 == 0 else "interactive",
        "sampler": SAMPLERS[index % len(SAMPLERS)],
        "format": "npy",
    }


def submit_all(service: Service, data: Dataset) -> list[dict[str, Any]]:
    images = data.held_out.levels[:200, 0].numpy()
    loose = {"solver": {"name": "adaptive", "tolerance": 1e-2}, "seed": 1}
    probed = loose | {"divergence": {"kind": "hutchinson", "probes": 1}}
    bound = {"method": "elbo", "bound": {"draws": 8}, "seed": 1}
    jobs = [service.submit("/generate", generation(index)) for index in range(130)]
    for i in range(40):
        request = {"model": "digits", "solver": REVERSIBLE}
        jobs.append(service.submit("/invert", request, images[i : i + 1 + i % 2]))
    for i in range(15):
        jobs.append(service.submit("/loglik", {"model": "digits"} | probed, images[i : i + 1]))
    for i in range(15):
        jobs.append(service.submit("/loglik", {"model": "digits"} | bound, images[i : i + 2]))
    return jobs


@pytest.mark.timeout(400)
def test_two_hundred_mixed_jobs_all_end_right_and_leave_nothing_behind(
    redis_server: str, tmp_path: Path, data: Dataset
) -> None:
    port = free_port()
    with ExitStack() as stack:
        service = start_api(stack, empty_database(redis_server, 3), tmp_path)
        stack.callback(service.start_worker(FOKKER_WORKER_METRICS_PORT=str(port)).stop)
        jobs = submit_all(service, data)
        assert len(jobs) == 200
        ended = [service.succeeded(job, 300) for job in jobs]

        drawn, asked = [], []
        for index, job in enumerate(ended[:130]):
            images = service.array(job, "images.npy")
            assert len(images) == len(job["result"]["images"]) == generation(index)["count"]
            if SAMPLERS[index % len(SAMPLERS)]["name"] in ("ddpm", "ddim"):
                drawn.append(images)
                asked += [index % 10] * len(images)
        levels = torch.from_numpy(np.concatenate(drawn)).reshape(-1, 1, 8, 8)
        assert class_accuracy(levels, torch.tensor(asked), data.train) >= 0.8

        for index in range(len(SAMPLERS)):  # alone: as it was among two hundred
            alone = service.succeeded(service.submit("/generate", generation(index)))
            pair = [service.array(job, "images.npy") for job in (alone, ended[index])]
            assert np.abs(pair[0] - pair[1]).max() < 16 / 255, SAMPLERS[index]

        def counts() -> dict[str, float]:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
            samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
            names = ("fokker_jobs_total", "fokker_rows_waiting")
            return {n: sum(s.value for s in samples if s.name == n) for n in names}

        expected = {"fokker_jobs_total": 200.0 + len(SAMPLERS), "fokker_rows_waiting": 0.0}
        wait_until(lambda: counts() == expected, f"{expected}, last {counts()}", 10)

"""POST /invert, and its latents through POST /generate, over HTTP with the shipped model."""

import numpy as np
import pytest

from tests.e2e.running import Service
from training.data import Dataset

UNIT = 2 / 17  # one grey level in [-1, 1] units


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("parts", "tolerance"),
    [
        pytest.param((3, 1, 4), 1e-5, id="8"),
        # At 1e-5 one of the first 64 held-out digits comes back with an error of 0.24.
        pytest.param((40, 1, 16, 7), 1e-6, id="64", marks=pytest.mark.slow),
    ],
)
def test_digits_come_back_when_decoded_among_other_rows(
    service: Service,
    data: Dataset,
    parts: tuple[int, ...],
    tolerance: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count, solver = sum(parts), {"name": "adaptive", "tolerance": tolerance}
    real = data.held_out.levels.numpy()[:count, 0]  # (count, 8, 8)
    encoded = service.submit("/invert", {"model": "digits", "solver": solver}, real)
    images = service.succeeded(encoded, 300)["result"]["images"]
    assert [image["latent"]["index"] for image in images] == list(range(count))

    order = np.random.default_rng(0).permutation(count)
    groups = np.split(order, np.cumsum(parts)[:-1])
    jobs = [  # all at once: they share the network's calls with each other
        service.submit(
            "/generate",
            {
                "model": "digits",
                "sampler": {"name": "pf_ode", "solver": solver},
                "init": {"latents": {"job": encoded["id"], "index": group.tolist()}},
                "format": "npy",
            },
        )
        for group in groups
    ]
    error = np.empty((count, 8, 8))
    for group, job in zip(groups, jobs, strict=True):
        decoded = service.array(service.succeeded(job, 300), "images.npy")[:, 0]
        error[group] = np.abs(decoded - real[group]) * UNIT
    largest, median = float(error.max()), float(np.median(error))
    # Decoded levels end at 0 and 16; the worker's own trip back is not clipped.
    own = max(image["round_trip_max_error"] for image in images)
    with capsys.disabled():
        print(
            f"\n  {count} digits there and back: max error {largest:.2g}, median {median:.2g}, "
            f"in one request {own:.2g} (one grey level is {UNIT:.3f})"
        )
    assert max(largest, own) < UNIT
    assert median < UNIT / 20
    assert all(image["converged"] for image in images)

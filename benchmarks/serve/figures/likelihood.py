"""7. The likelihood of 64 images from 64 requests at once, against one request at a time."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.load import Load, Request, drive
from benchmarks.serve.options import Options
from benchmarks.serve.processes import ROOT, say
from benchmarks.serve.summary import Record, figures
from benchmarks.serve.system import fokker
from training.config import Config
from training.data import digits

ALONE = 8
"""One image of so many is also asked for alone: that takes as long as all of them together."""
LIMIT = 300.0


def measure(options: Options) -> str:
    """Images/s of both, on the same images, and their ratio."""
    requests = asked(options.clients)
    together, alone, ratio = [], [], []
    for number in range(options.rounds):
        with fokker() as system:

            def images_a_second(some: list[Request], clients: int, url: str = system.url) -> float:
                load = Load(
                    base_url=url, requests=some, clients=clients, total=len(some), seconds=LIMIT
                )
                return finished_a_second(drive(load))

            alone.append(images_a_second(requests[::ALONE], 1))
            together.append(images_a_second(requests, options.clients))
        ratio.append(together[-1] / alone[-1])
        say(f"  round {number + 1}: {ratio[-1]:.2f} times")
    return figures(
        (
            ("one request at a time, images/s", alone, ""),
            (f"{options.clients} requests at once, images/s", together, ""),
            ("ratio", ratio, "≥ 4.5"),
        )
    )


def finished_a_second(records: list[Record]) -> float:
    """Images over the time to the last of them."""
    return sum(r.images for r in records) / max(r.ended for r in records)


def asked(count: int) -> list[Request]:
    """A request each for digits that the model never saw."""
    return [
        Request(
            path="/loglik",
            body={
                "model": "digits",
                "seed": n,
                "divergence": {"kind": "hutchinson", "probes": 8},
                "images": [base64.b64encode(npy(image)).decode()],
            },
        )
        for n, image in enumerate(held_out(count))
    ]


def held_out(count: int) -> NDArray[np.float64]:
    """Digits that the model was not trained on: (count, 8, 8) in levels."""
    part = Config.read(ROOT / "training" / "configs" / "digits.toml").data.held_out
    return digits(part).held_out.levels[:count, 0].numpy()


def npy(array: NDArray[np.float64]) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()

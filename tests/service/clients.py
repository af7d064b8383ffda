"""Both kinds of client, called alike, and what a worker answers to each operation."""

from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

import anyio.from_thread
import numpy as np

from service.client import AsyncClient, Client
from service.jobs.lease import Claim
from tests.service.uploads import GREY, latents, png

Serve = Callable[[Callable[[Claim], None]], None]


class Blocking:
    """A client, called from where nothing else runs."""

    def __init__(self, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        self.client = stack.enter_context(Client(*args, **kwargs))

    def __call__(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self.client, method)(*args, **kwargs)
        return list(answer) if method in ("events", "jobs") else answer


class Looping:
    """An asynchronous client, called the same way, over a loop in a thread of its own."""

    def __init__(self, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        self.portal = stack.enter_context(anyio.from_thread.start_blocking_portal())

        async def connect() -> AsyncClient:
            return AsyncClient(*args, **kwargs)

        self.client = self.portal.call(connect)
        stack.callback(lambda: self.portal.call(self.client.aclose))

    def __call__(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        call = partial(getattr(self.client, method), *args, **kwargs)

        async def listed() -> list[Any]:
            async with aclosing(call()) as answers:
                return [answer async for answer in answers]

        return self.portal.call(listed if method in ("events", "jobs") else call)


Connect = Callable[..., Blocking | Looping]


def draw(claim: Claim) -> None:
    """What a worker answers to a request for two pictures."""
    entries = []
    for index in range(2):
        claim.put_artifact(f"{index}.png", "image/png", png(GREY + index))
        entries.append({"index": index, "seed": 40 + index, "nfe": 50, "artifact": f"{index}.png"})
    claim.succeed({"images": entries, "grid": "grid.png"})


def encode(claim: Claim) -> None:
    """What a worker answers to a request to encode one image, whose trip back it did not end."""
    file = latents(1, companion=np.full((1, 1, 8, 8), 2.0))
    claim.put_artifact("latents.safetensors", "application/vnd.safetensors", file)
    entry = {
        "index": 0,
        "latent": {"artifact": "latents.safetensors", "index": 0},
        "round_trip_rmse": 0.25,
        "round_trip_max_error": None,
        "norm_ratio": 1.5,
        "nfe": 12,
        "converged": False,
    }
    claim.succeed({"images": [entry]})


def likelihoods(claim: Claim) -> None:
    common = {"nfe": 56, "t_min": 0.001, "converged": True, "discretization_error": 0.5}
    errors = {"probe": 2.5, "dequantization": None}
    values = {"log_likelihood": 57.5, "bits_per_dim": 1.75, "prior": -84.5, "volume": 142.0}
    none = dict.fromkeys(values) | {"converged": False, "discretization_error": None}
    entries = [common | values, common | none]
    claim.succeed({"images": [entry | {"standard_error": errors} for entry in entries]})

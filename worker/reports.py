"""What a job tells while it runs: steps, at a limited rate, and the previews it was asked for."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from torch import Tensor

from model import pictures
from model.data import DataSpec
from model.prediction import x0_from_eps
from model.query import Answer, Query
from service.jobs import parameters as p

STEP_INTERVAL = 1.0
"""Seconds between two `step` events of a job, at least."""

STEPS_A_SECOND = 16
"""`step` events of all jobs of a worker, about."""

Report = tuple[str, Callable[[], dict[str, Any]]]
"""An event's type and a function that makes its data, away from the device's thread."""


class Reports:
    """The events of one job."""

    def __init__(self, spec: DataSpec, parameters: p.Parameters) -> None:
        self._spec = spec
        asked = None if isinstance(parameters, p.LoglikParameters) else parameters.stream
        self._stream = asked if spec.shape[0] in pictures.CHANNELS else None
        self._next_step = 0.0

    def wants_preview(self, calls: int) -> bool:
        """Whether images that have made so many network calls are to be shown."""
        return self._stream is not None and calls % self._stream.every == 0

    def preview(
        self, calls: int, progress: float, images: Tensor, query: Query, answer: Answer
    ) -> Report:
        """These images of the job, as they are or as x̂0."""
        assert self._stream is not None
        what = self._stream.what
        x = x0_from_eps(query.u, answer.eps, query.log_snr) if what == "x0" else query.u

        def data() -> dict[str, Any]:
            files = [pictures.encode(pixels) for pixels in pictures.to_bytes(self._spec, x.cpu())]
            shown = [
                {"index": index, "png": base64.b64encode(file).decode()}
                for index, file in zip(images.tolist(), files, strict=True)
            ]
            return _where(calls, progress) | {"what": what, "images": shown}

        return "preview", data

    def wants_step(self, now: float, jobs: int = 1) -> bool:
        """Whether it is time to tell how far the job is; now: seconds on any clock.

        jobs: in flight. They share `STEPS_A_SECOND`, since every event costs the worker, Redis and
        who reads it some of the time that networks want.
        """
        if now < self._next_step:
            return False
        self._next_step = now + max(STEP_INTERVAL, jobs / STEPS_A_SECOND)
        return True

    @staticmethod
    def step(calls: int, progress: float) -> Report:
        """How far the job is."""
        return "step", lambda: _where(calls, progress)


def _where(calls: int, progress: float) -> dict[str, Any]:
    return {"calls": calls, "progress": round(progress, 4)}

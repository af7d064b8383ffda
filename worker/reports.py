"""What a job tells while it runs: steps, at a limited rate, and the previews it was asked for."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from model import pictures
from model.data import DataSpec
from model.prediction import x0_from_eps
from model.query import Answer, Query
from service.jobs import parameters as p

STEP_INTERVAL = 1.0
"""Seconds between two `step` events of a job, at least."""

STEPS_A_SECOND = 16
"""`step` events of all jobs of a worker's process, about."""

PREVIEWS_AT_ONCE = 16
"""Previews that a part of a job may tell before its rate counts: short jobs show all of theirs."""

Report = tuple[str, Callable[[], dict[str, Any]]]
"""An event's type and a function that makes its data, away from the device's thread."""


class Reports:
    """The events of one job."""

    def __init__(
        self, spec: DataSpec, parameters: p.Parameters, preview_rate: float = math.inf
    ) -> None:
        """preview_rate: previews a second that all jobs of the process share."""
        self._spec = spec
        self._rate = preview_rate
        self._next_preview: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        asked = None if isinstance(parameters, p.LoglikParameters) else parameters.stream
        self._stream = asked if spec.shape[0] in pictures.CHANNELS else None
        self._next_step = 0.0

    def wants_preview(self, calls: int, part: object, now: float, parts: int = 1) -> bool:
        """Whether the images of a part that has made so many network calls are to be shown.

        now: seconds on any clock. parts: of all jobs in flight, which share the rate evenly: what
        one may not use up at the expense of another. Those left out are not made up for.
        """
        if self._stream is None or calls % self._stream.every:
            return False
        interval = parts / self._rate
        due = max(self._next_preview.get(part, now), now)
        if due > now + (PREVIEWS_AT_ONCE - 1) * interval:
            return False
        self._next_preview[part] = due + interval
        return True

    def preview(
        self, calls: int, progress: float, images: Tensor, query: Query, answer: Answer
    ) -> Report:
        """These images of the job, as they are or as x̂0; progress: the job's."""
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

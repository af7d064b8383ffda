"""What a job tells while it runs: steps, at a limited rate, and the previews it was asked for."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from model import pictures
from model.data import DataSpec
from model.prediction import x0_from_eps
from model.query import Answer, Query
from service.jobs import parameters as p

STEP_INTERVAL = 0.1
"""Seconds between two `step` events of a job, at least."""

Report = tuple[str, Callable[[], dict[str, Any]]]
"""An event's type and a function that makes its data, away from the device's thread."""


class Reports:
    """The events of one job: counts its network calls."""

    def __init__(self, spec: DataSpec, parameters: p.Parameters) -> None:
        self._spec = spec
        asked = None if isinstance(parameters, p.LoglikParameters) else parameters.stream
        self._stream = asked if spec.shape[0] in pictures.CHANNELS else None
        self._calls = 0
        self._last_step = 0.0

    def after(self, query: Query, answer: Answer) -> Iterator[Report]:
        """The events to send after a network call."""
        self._calls += 1
        where = {"calls": self._calls, "progress": round(query.progress, 4)}
        if self._stream is not None and self._calls % self._stream.every == 0:
            u = query.u
            shown = x0_from_eps(u, answer.eps, query.log_snr) if self._stream.what == "x0" else u
            yield "preview", self._preview(where | {"what": self._stream.what}, query.image, shown)
        now = time.monotonic()
        if now - self._last_step >= STEP_INTERVAL:
            self._last_step = now
            yield "step", lambda: where

    def _preview(
        self, where: dict[str, Any], image: Tensor, x: Tensor
    ) -> Callable[[], dict[str, Any]]:
        def data() -> dict[str, Any]:
            files = [pictures.encode(pixels) for pixels in pictures.to_bytes(self._spec, x)]
            images = [
                {"index": index, "png": base64.b64encode(file).decode()}
                for index, file in zip(image.tolist(), files, strict=True)
            ]
            return where | {"images": images}

        return data

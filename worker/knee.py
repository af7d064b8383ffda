"""What a network call costs at each batch size, and the knee: the size worth filling.

A call has a price that does not depend on its rows, so a row is cheaper in a larger batch, until
the device is saturated. Measured when a model is loaded, and kept in a cache folder: the curve is
a fact of a checkpoint on a device.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Checkpoint, library_version
from model.denoiser import REPRODUCIBLE_ROWS, Denoiser
from model.noise import Stream, normal, rademacher
from model.query import Condition, Query

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes that are measured."""

WITHIN = 0.05
"""A row costs no less when it costs less by no more than this part."""

LIMIT = 2.0
"""Seconds of calls after which no further turn is taken."""

_ROUNDS = 5
"""Times that each size is measured, unless LIMIT is reached before."""

PROBES = 8
"""Products a row of the likelihood call that is measured."""

_REPEATS = 7
_SIZE_SECONDS = 0.3
"""A size is timed up to seven times, and not again once its calls have taken this long."""

_LONG = 0.5
"""A call of so many seconds is not made again: what warming up adds to it does not count. Sizes
above the first that takes so long are not measured."""

_WAITED = 0.1
"""Part of the measuring time that threads may wait for a core before a curve is doubtful."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """Seconds of a plain network call at each measured number of rows, ascending.

    gradient_seconds: of one likelihood call, REPRODUCIBLE_ROWS rows with PROBES products each;
        None where it was not measured.
    doubtful: the device was busy with other things meanwhile; calls may be many times faster.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    gradient_seconds: float | None = None
    doubtful: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError` for what cannot have been measured."""
        ascending = all(a < b for a, b in zip((0, *self.rows), self.rows, strict=False))
        times = (*self.seconds, 1.0 if self.gradient_seconds is None else self.gradient_seconds)
        positive = all(math.isfinite(value) and value > 0.0 for value in times)
        if not self.rows or len(self.rows) != len(self.seconds) or not ascending or not positive:
            raise ValueError(f"not a curve: rows={self.rows}, seconds={times}")

    @property
    def knee(self) -> int:
        """The smallest measured size past which a row costs no less, within 5 %."""
        costs = [seconds / rows for rows, seconds in zip(self.rows, self.seconds, strict=True)]
        return next(
            rows
            for i, rows in enumerate(self.rows)
            if all(later >= (1.0 - WITHIN) * costs[i] for later in costs[i:])
        )

    def seconds_for(self, rows: int) -> float:
        """Seconds of a call of so many rows: interpolated, proportional past the last size."""
        if rows >= self.rows[-1]:
            return self.seconds[-1] * rows / self.rows[-1]
        if rows <= self.rows[0]:
            return self.seconds[0]
        i = bisect.bisect_right(self.rows, rows)
        (low, high), (start, end) = self.rows[i - 1 : i + 1], self.seconds[i - 1 : i + 1]
        return start + (end - start) * (rows - low) / (high - low)

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Curve:
        """The inverse of `to_json`; raises `ValueError` for anything else."""
        try:
            gradient = document["gradient_seconds"]
            return cls(
                rows=tuple(int(rows) for rows in document["rows"]),
                seconds=tuple(float(seconds) for seconds in document["seconds"]),
                gradient_seconds=None if gradient is None else float(gradient),
                doubtful=bool(document["doubtful"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a curve: {document!r}") from error

    def __str__(self) -> str:
        """The knee and all times, in one line."""
        pairs = zip(self.rows, self.seconds, strict=True)
        calls = ", ".join(f"{rows}: {1e3 * seconds:.3g}" for rows, seconds in pairs)
        line = f"knee at {self.knee} rows; ms a call: {calls}"
        if self.gradient_seconds is not None:
            line += f"; likelihood, {REPRODUCIBLE_ROWS} rows: {1e3 * self.gradient_seconds:.3g}"
        return line + (" (measured on a busy device)" if self.doubtful else "")


def measure(
    seconds_of: Callable[[int], float],
    gradient_seconds_of: Callable[[], float] | None = None,
) -> Curve:
    """The curve of a network.

    seconds_of: makes one call of so many rows and returns its time in seconds.
    gradient_seconds_of: the same for one likelihood call; left out, it is not measured.

    All sizes take turns, and the fastest call of each counts: whatever else the machine does for a
    while, like a service's other processes that start, then slows all sizes and not the last ones.
    Sizes whose calls take very long, or more memory than there is, are left out. The very first
    call is not counted: libraries are loaded in it.
    """
    seconds_of(SIZES[0])
    fastest: dict[int, float] = {}
    sizes, spent, turn = list(SIZES), 0.0, 0
    while sizes and turn < _ROUNDS and (turn == 0 or spent < LIMIT):
        for place, size in enumerate(sizes):
            try:
                seconds = seconds_of(size)
            except torch.OutOfMemoryError:
                if not fastest:
                    raise
                sizes = sizes[:place]
                break
            fastest[size] = min(seconds, fastest.get(size, seconds))
            spent += seconds
            if seconds > _LONG:
                sizes = sizes[: place + 1]
                break
        turn += 1
    rows = [size for size in SIZES if size in fastest]
    seconds_by_size = [fastest[size] for size in rows]
    gradient = None
    if gradient_seconds_of is not None:
        with contextlib.suppress(torch.OutOfMemoryError):
            gradient = _fastest(gradient_seconds_of)[0]
    # Fewer rows never take longer: what says otherwise was disturbed.
    smoothed = tuple(min(seconds_by_size[i:]) for i in range(len(rows)))
    return Curve(tuple(rows), smoothed, gradient)


def _fastest(seconds_of: Callable[[], float]) -> tuple[float, float]:
    """The fastest of a few calls after one that warms up, and the seconds of all of them.

    Whatever else runs on the machine can only add to a call's time.
    """
    warm = seconds_of()
    if warm > _LONG:
        return warm, warm
    times = [seconds_of()]
    while len(times) < _REPEATS and sum(times) < _SIZE_SECONDS:
        times.append(seconds_of())
    return min(times), warm + sum(times)


def measure_checkpoint(checkpoint: Checkpoint, denoiser: Denoiser) -> Curve:
    """The curve of a loaded checkpoint, as its denoiser answers queries."""
    shape = checkpoint.description.data.shape
    query = functools.cache(functools.partial(_query, shape))

    def plain(rows: int) -> float:
        return _seconds(denoiser, query(rows))

    def gradient() -> float:
        return _seconds(denoiser, query(REPRODUCIBLE_ROWS, PROBES))

    before, start = _waited(), time.perf_counter()
    curve = measure(plain, gradient)
    waited, taken = _waited() - before, time.perf_counter() - start
    return dataclasses.replace(curve, doubtful=waited > _WAITED * taken)


def _waited() -> float:
    """Seconds that the threads of this process have been ready to run with no core to run on.

    Linux's schedstat; 0 where there is none.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            total += int(path.read_text().split()[1])
    return 1e-9 * total


def _query(shape: tuple[int, ...], rows: int, probes: int = 0) -> Query:
    """Noise at log-SNRs all over the range; reproducible where it asks for products."""
    seeds = torch.arange(rows)
    return Query(
        u=normal(seeds, Stream.PRIOR, 0, shape),
        log_snr=torch.linspace(-8.0, 8.0, rows, dtype=torch.float64),
        condition=Condition.same(rows),
        probes=rademacher(seeds, Stream.PROBE, 0, (probes, *shape)) if probes else None,
        reproducible=probes > 0,
    )


def _seconds(denoiser: Denoiser, query: Query) -> float:
    """Seconds of one answer, until the device is done with it."""
    start = time.perf_counter()
    denoiser(query)
    if denoiser.device.type == "cuda":
        torch.cuda.synchronize(denoiser.device)
    return time.perf_counter() - start


def circumstances(checkpoint: Checkpoint, denoiser: Denoiser) -> dict[str, str | int]:
    """All that a curve depends on: where one of these differs, it must be measured again."""
    return {
        "digest": checkpoint.digest,
        "device": _device_name(denoiser.device),
        "dtype": str(denoiser.dtype),
        "fast": _fast(denoiser),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "fokker": library_version(),
    }


def _fast(denoiser: Denoiser) -> str:
    """What answers plain rows: the network itself, or which copy of it."""
    if denoiser.fast is None:
        return "itself"
    dtypes = sorted({str(weight.dtype) for weight in denoiser.fast.parameters()})
    return f"{type(denoiser.fast).__name__} {dtypes}"


def _device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU as far as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def default_cache() -> Path | None:
    """The user's cache folder for Fokker (XDG base directories); None for a user without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # the specification says to ignore others
        return given / "fokker"
    try:
        return Path.home() / ".cache" / "fokker"
    except RuntimeError:
        return None


class Curves:
    """Curves, measured once. A cache folder that cannot be read or written is no error."""

    def __init__(
        self,
        folder: Path | None = None,
        measure: Callable[[Checkpoint, Denoiser], Curve] = measure_checkpoint,
    ) -> None:
        """folder: None keeps nothing. measure: how a loaded checkpoint is measured."""
        self._folder = None if folder is None else folder / "curves"
        self._measure = measure

    def of(self, checkpoint: Checkpoint, denoiser: Denoiser, idle: Callable[[], bool]) -> Curve:
        """The curve of a loaded checkpoint: the one that was kept, else measured now.

        idle: whether nothing else runs on the device. A doubtful curve is not kept.
        """
        key = circumstances(checkpoint, denoiser)
        if (found := self.find(key)) is not None:
            return found
        was_idle = idle()
        curve = self._measure(checkpoint, denoiser)
        if not (was_idle and idle()):
            curve = dataclasses.replace(curve, doubtful=True)
        if not curve.doubtful:
            self.keep(key, curve)
        return curve

    def find(self, key: Mapping[str, str | int]) -> Curve | None:
        """The curve that was kept under these circumstances, if there is one that can be read."""
        if (path := self._path(key)) is None:
            return None
        try:
            return Curve.from_json(json.loads(path.read_bytes())["curve"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("the curve in %s is measured again: %s", path, error)
            return None

    def keep(self, key: Mapping[str, str | int], curve: Curve) -> None:
        """Keep a curve; its file appears whole or not at all."""
        if (path := self._path(key)) is None:
            return
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"key": key, "curve": curve.to_json()}))
            partial.replace(path)
        except OSError as error:
            log.warning("the curve is not kept: %s", error)

    def _path(self, key: Mapping[str, str | int]) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{name[:32]}.json"

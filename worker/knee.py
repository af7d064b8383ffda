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
from model.compiled import Compiled
from model.cores import SharedAmongCores, rounded
from model.denoiser import Denoiser
from model.noise import Stream, normal, rademacher
from model.query import Condition, Query
from worker.runner import is_out_of_memory

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes that are measured."""

WITHIN = 0.05
"""A row costs no less when it costs less by no more than this part."""

ROUNDS = 4
"""Times that each size is measured on an idle device; once where other jobs run beside."""

LIMIT = 4.0
"""Seconds of calls after which no further round is begun."""

_MOST_WAITED = 0.1
"""Part of the measuring time that threads may wait for a core before a curve is not kept."""

WARM = 1.0
"""Seconds of calls after which a network counts as warm."""

PROBES = 8
"""Products a row of the likelihood call that is measured."""

_REVISION = 5
"""Of how a network is called: another one where that makes calls cost something else."""

_SAMPLE_ROWS = 256
_SAMPLE_CALLS = 16
_SAMPLE_SECONDS = 0.25
"""A sample ends with any of these. Sizes above the first whose one call takes as long as a whole
sample may are not measured."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """Seconds of a plain network call at each measured number of rows, ascending.

    bucket_seconds: of a call for a denoiser's `bucket` of reproducible rows; gradient_seconds: of
        one with PROBES products a row. None where it was not measured.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    bucket_seconds: float | None = None
    gradient_seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` for what cannot have been measured."""
        ascending = all(a < b for a, b in zip((0, *self.rows), self.rows, strict=False))
        buckets = (self.bucket_seconds, self.gradient_seconds)
        times = (*self.seconds, *(seconds for seconds in buckets if seconds is not None))
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
            bucket, gradient = document["bucket_seconds"], document["gradient_seconds"]
            return cls(
                rows=tuple(int(rows) for rows in document["rows"]),
                seconds=tuple(float(seconds) for seconds in document["seconds"]),
                bucket_seconds=None if bucket is None else float(bucket),
                gradient_seconds=None if gradient is None else float(gradient),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a curve: {document!r}") from error

    def __str__(self) -> str:
        """The knee and all times, in one line."""
        pairs = zip(self.rows, self.seconds, strict=True)
        calls = ", ".join(f"{rows}: {1e3 * seconds:.3g}" for rows, seconds in pairs)
        line = f"knee at {self.knee} rows; ms a call: {calls}"
        if self.bucket_seconds is not None:
            line += f"; reproducible: {1e3 * self.bucket_seconds:.3g}"
        if self.gradient_seconds is not None:
            line += f"; likelihood: {1e3 * self.gradient_seconds:.3g}"
        return line


def measure(
    seconds_of: Callable[[int], float],
    bucket_seconds_of: Callable[[int], float] | None = None,
    rounds: int = ROUNDS,
) -> Curve:
    """The curve of a network.

    seconds_of: makes one call of so many rows and returns its time in seconds.
    bucket_seconds_of: the same for a bucket with so many products a row; left out, it is not
        measured.

    Whatever else the machine does can only add to a call's time, and more often to a long one's. So
    sizes are compared by samples of about equal length, as many calls as have 256 rows, that take
    turns; the fastest sample of each counts. Sizes whose calls take very long, or more memory than
    there is, are left out. The first call of each size is not counted: it loads and allocates.
    """
    fastest: dict[int, float] = {}
    sizes, spent = list(SIZES), 0.0
    for _ in range(rounds):
        for place, size in enumerate(sizes):
            try:
                taken = _sample(seconds_of, size, warm=size in fastest)
            except Exception as error:
                if not (fastest and is_out_of_memory(error)):
                    raise
                sizes = sizes[:place]
                break
            mean = sum(taken) / len(taken)
            fastest[size] = min(mean, fastest.get(size, mean))
            spent += sum(taken)
            if mean > _SAMPLE_SECONDS:
                sizes = sizes[: place + 1]
                break
        if spent > LIMIT:
            break
    buckets: dict[int, float] = {}
    if bucket_seconds_of is not None:
        for products in (0, PROBES):
            with contextlib.suppress(torch.OutOfMemoryError):
                calls = [_sample(lambda _, k=products: bucket_seconds_of(k), 1) for _ in range(2)]  # type: ignore[misc]
                buckets[products] = min(min(taken) for taken in calls)
    # Fewer rows never take longer: what says otherwise was disturbed.
    rows = [size for size in SIZES if size in fastest]
    smoothed = tuple(min(fastest[later] for later in rows[i:]) for i in range(len(rows)))
    return Curve(tuple(rows), smoothed, buckets.get(0), buckets.get(PROBES))


def _sample(seconds_of: Callable[[int], float], size: int, warm: bool = False) -> list[float]:
    """The seconds of some calls; of a first one that warms up only if it was a very long one."""
    if not warm and (first := seconds_of(size)) > 2.0 * _SAMPLE_SECONDS:
        return [first]
    taken: list[float] = []
    calls = min(_SAMPLE_CALLS, -(-_SAMPLE_ROWS // size))
    while len(taken) < calls and sum(taken) < _SAMPLE_SECONDS:
        taken.append(seconds_of(size))
    return taken


def measure_checkpoint(checkpoint: Checkpoint, denoiser: Denoiser, rounds: int = ROUNDS) -> Curve:
    """The curve of a loaded checkpoint, as its denoiser answers queries."""
    shape = checkpoint.description.data.shape
    query = functools.cache(functools.partial(_query, shape))

    def plain(rows: int) -> float:
        return _seconds(denoiser, query(rows))

    def bucket(products: int) -> float:
        return _seconds(denoiser, query(denoiser.bucket, products))

    return measure(plain, bucket, rounds)


def warm_up(checkpoint: Checkpoint, denoiser: Denoiser, curve: Curve) -> None:
    """Call a network on a CPU once with each number of rows that this thread computes, to the knee.

    So kernels are made now and not within requests, and what memory they take is known soon. With a
    large network it ends when it has taken `WARM` seconds.
    """
    if not isinstance(denoiser.fast, SharedAmongCores):
        return
    spent = 0.0
    for rows in sorted({rounded(rows) for rows in range(1, curve.knee + 1)}):
        spent += _seconds(denoiser, _query(checkpoint.description.data.shape, rows))
        if spent > WARM:
            return


def _waited() -> float:
    """Seconds that the threads of this process were ready to run and had no core to run on.

    Linux's schedstat; 0 where there is none.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            total += int(path.read_text().split()[1])
    return 1e-9 * total


def _query(shape: tuple[int, ...], rows: int, probes: int | None = None) -> Query:
    """Noise at log-SNRs all over the range; reproducible where it says for how many products."""
    seeds = torch.arange(rows)
    return Query(
        u=normal(seeds, Stream.PRIOR, 0, shape),
        log_snr=torch.linspace(-8.0, 8.0, rows, dtype=torch.float64),
        condition=Condition.same(rows),
        probes=rademacher(seeds, Stream.PROBE, 0, (probes, *shape)) if probes else None,
        reproducible=probes is not None,
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
        "fokker": f"{library_version()}, {_REVISION}",
    }


def _fast(denoiser: Denoiser) -> str:
    """What answers plain rows: the network itself, or which copy of it."""
    if denoiser.fast is None:
        return "itself"
    dtypes = sorted({str(weight.dtype) for weight in denoiser.fast.parameters()})
    compiled = any(isinstance(module, Compiled) for module in denoiser.fast.modules())
    return f"{type(denoiser.fast).__name__} {dtypes}{' compiled' * compiled}"


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
        measure: Callable[[Checkpoint, Denoiser, int], Curve] = measure_checkpoint,
    ) -> None:
        """folder: None keeps nothing. measure: how a loaded checkpoint is, in so many rounds."""
        self._folder = None if folder is None else folder / "curves"
        self._measure = measure

    def of(self, checkpoint: Checkpoint, denoiser: Denoiser, idle: Callable[[], bool]) -> Curve:
        """The curve of a loaded checkpoint: the one that was kept, else measured now.

        idle: whether no job runs on the device. While one does, it is held up as little as can be.
        What was measured beside jobs, or on cores that others had, is not kept: its sizes compare,
        its times do not.
        """
        key = circumstances(checkpoint, denoiser)
        if (found := self.find(key)) is not None:
            return found
        alone, before, start = idle(), _waited(), time.perf_counter()
        curve = self._measure(checkpoint, denoiser, ROUNDS if alone else 1)
        waited = (_waited() - before) / (time.perf_counter() - start)
        if alone and idle() and waited < _MOST_WAITED:
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

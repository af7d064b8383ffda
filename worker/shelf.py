"""The models that a worker offers: every checkpoint of a folder, in memory while it is used.

Versions that `fokker publish` has replaced are no longer offered, but served to the jobs that were
submitted with them as long as their files are kept (`model.checkpoint.replaced_path`).

At first a model is its header; its weights are read when they are asked for, by one thread, while
others run. What was used least recently is unloaded when the memory for weights is full, but never
a model that is pinned by jobs in flight.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import model
from model.checkpoint import REPLACED, Checkpoint, CheckpointError, load, replaced_path
from model.compiled import RANGES
from model.cores import use_cores
from model.denoiser import Denoiser
from model.unet import UNetConfig
from worker.header import Header, read_header
from worker.knee import Curve, Curves, warm_up
from worker.metrics import Metrics
from worker.threads import SharedCores

SHIPPED = Path(model.__file__).parent / "zoo"

log = logging.getLogger(__name__)


class ModelError(RuntimeError):
    """A model that cannot be served now; says why."""


@dataclass(eq=False, kw_only=True)
class ServedModel:
    """A loaded checkpoint, ready to answer queries; curve: what its calls cost."""

    header: Header
    checkpoint: Checkpoint
    denoiser: Denoiser
    curve: Curve

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.header.name


@dataclass(kw_only=True)
class _Wanted:
    """A model that shall be loaded, and who wants to know when it is."""

    header: Header
    ready: list[Callable[[], None]] = field(default_factory=list)


class Shelf:
    """Models by digest. A file that cannot be served is logged and left out.

    All methods but `refresh` may be called from any thread, and none but `load` and `models` waits
    for a file or a measurement.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        budget: int | None = None,
        curves: Curves | None = None,
        metrics: Metrics | None = None,
        precision: torch.dtype = torch.float32,
        compile: bool = False,  # noqa: A002
        cores: SharedCores | None = None,
    ) -> None:
        """Raises `CheckpointError` when the folder has nothing that can be served.

        budget: bytes of weights kept loaded, `default_budget` if left out. curves: where costs are
        measured and kept; they are measured and not kept if left out. precision, compile: see
        `Checkpoint.denoiser`. cores: that other processes share.
        """
        self.device = device
        self.cores = cores or SharedCores()
        self.budget = default_budget(device) if budget is None else budget
        self._folder = folder
        self._curves = curves or Curves()
        self._metrics = metrics or Metrics()
        self._precision, self._compile = precision, compile
        # What is known of each file as it was then: its header, or why it cannot be served.
        self._files: dict[Path, tuple[tuple[int, ...], Header | str]] = {}

        self._lock = threading.Lock()  # never held while a file is read or a model is measured
        self._offered: dict[str, Header] = {}
        self._kept: dict[str, Header] = {}  # replaced ones, whose files are still there
        self._loaded: dict[str, ServedModel] = {}  # least recently used first
        self._wanted: dict[str, _Wanted] = {}  # in the order of the requests
        self._failed: dict[str, str] = {}
        self._unloadable: dict[str, str] = {}  # the same, until it can be loaded
        self._pins: Counter[str] = Counter()
        self._loader: threading.Thread | None = None

        self._offer(self._scan())
        if not self._offered:
            known = "has no checkpoint that can be served" if folder.is_dir() else "is no folder"
            raise CheckpointError(
                f"{folder} {known}; put *.safetensors files there (from `fokker train`), or "
                "leave out --models and FOKKER_MODELS to serve the shipped model"
            )

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The cards of all models that the folder has."""
        with self._lock:
            return [header.card for header in self._offered.values()]

    @property
    def failures(self) -> dict[str, str]:
        """Why models of the folder cannot be served, by name."""
        files = {
            path: known for path, (_, known) in self._files.items() if path.parent == self._folder
        }
        unread = {path.stem: known for path, known in files.items() if isinstance(known, str)}
        with self._lock:
            unloadable = {
                header.name: self._unloadable[digest]
                for digest, header in self._offered.items()
                if digest in self._unloadable
            }
            twins = {
                header.name: f"it is the same checkpoint as {offered.name}, which is served"
                for header in files.values()
                if not isinstance(header, str)
                and (offered := self._offered.get(header.digest)) is not None
                and offered.path != header.path
            }
        return unread | twins | unloadable

    @property
    def digests(self) -> frozenset[str]:
        """What can be requested: the folder's models, and replaced ones, kept or still loaded."""
        with self._lock:
            return frozenset({*self._offered, *self._kept, *self._loaded})

    @property
    def rates(self) -> dict[str, float]:
        """Row-calls a second at the knee, of every loaded model by digest."""
        with self._lock:
            curves = {digest: served.curve for digest, served in self._loaded.items()}
        return {digest: c.knee / c.seconds_for(c.knee) for digest, c in curves.items()}

    @property
    def models(self) -> dict[str, ServedModel]:
        """Every model of the folder by digest, all loaded before this returns."""
        return {card["digest"]: self.load(card["digest"]) for card in self.cards}

    @property
    def blocked(self) -> str | None:
        """The digest that waits for pinned models to leave, None when nothing does.

        Models are loaded in the order of their requests, so nothing else is loaded meanwhile:
        whoever pins should take no more work for other models.
        """
        with self._lock:
            first = next(iter(self._wanted), None)
            return None if first is None or self._can_fit(self._wanted[first].header) else first

    def request(self, digest: str, ready: Callable[[], None]) -> ServedModel | None:
        """The loaded model; None when it must be loaded first, which starts in the background.

        ready: called once, from another thread, when the model is loaded or has failed to.
        Raises `ModelError` for a digest that is not served here, and after a load that failed: it
        is tried again only after a `refresh`. Pin before the request to be sure that it stays.
        """
        with self._lock:
            if (served := self._loaded.pop(digest, None)) is not None:
                self._loaded[digest] = served  # now the last one to be unloaded
                return served
            if (reason := self._failed.get(digest)) is not None:
                raise ModelError(reason)
            if digest not in self._wanted:
                header = self._offered.get(digest) or self._kept.get(digest)
                if header is None:
                    raise ModelError(f"this worker has no checkpoint {digest} (any more)")
                self._wanted[digest] = _Wanted(header=header)
            waiting = self._wanted[digest].ready
            if ready not in waiting:
                waiting.append(ready)
            self._start()
            return None

    def load(self, digest: str) -> ServedModel:
        """The loaded model, after waiting for it; raises `ModelError` as `request` does."""
        ready = threading.Event()
        while (served := self.request(digest, ready.set)) is None:
            ready.wait()
            ready.clear()
        return served

    def preload(self) -> None:
        """Start to load models, in order of their names, as long as the budget has room."""
        with self._lock:
            room = self.budget - self._held()
            fitting = []
            for header in self._offered.values():
                if header.digest not in self._loaded and self._size(header) <= room:
                    room -= self._size(header)
                    fitting.append(header.digest)
        for digest in fitting:
            self.request(digest, _nothing)

    def pin(self, digest: str) -> None:
        """Keep a model from being unloaded, from when it is loaded until as many `unpin`."""
        with self._lock:
            self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Take one `pin` back; `ValueError` where there is none."""
        with self._lock:
            if not self._pins[digest]:
                raise ValueError(f"{digest} is not pinned")
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
                if self._wanted:
                    self._start()

    def refresh(self) -> None:
        """Look for files that came, went or changed; to be called by one thread, every few seconds.

        A file replaced by another version is offered under its new digest. The old digest can be
        requested as long as `fokker publish` keeps its file or it is loaded; then it is gone, and a
        job that asks for it must go to another worker or fail. Costs one `stat` a file, and a
        reading of those that changed.
        """
        found = self._scan()
        with self._lock:
            self._offer(found)
            self._failed.clear()

    # The folder

    def _scan(self) -> dict[str, Header]:
        """The headers of the folder's usable files by digest; reads the files that changed."""
        files: dict[Path, tuple[tuple[int, ...], Header | str]] = {}
        found: dict[str, Header] = {}
        # Replaced ones last: while a version is being replaced, it is in both places.
        paths = sorted(self._folder.glob("*.safetensors"))
        for path in paths + sorted(self._folder.glob(f"{REPLACED}/*/*.safetensors")):
            try:
                status = path.stat()
            except FileNotFoundError:  # gone since it was listed
                continue
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            before = self._files.get(path)
            changed = before is None or before[0] != stamp
            files[path] = (stamp, _usable(path)) if before is None or changed else before
            header = files[path][1]
            if isinstance(header, str):
                continue
            first = found.setdefault(header.digest, header)
            if first is not header and changed and path.parent == self._folder:
                log.error("left out: %s is the same checkpoint as %s", path, first.name)
        self._files = files
        return found

    def _offer(self, found: dict[str, Header]) -> None:
        offered = {d: header for d, header in found.items() if header.path.parent == self._folder}
        for digest in offered.keys() - self._offered.keys():
            log.info("offering %s, %s", offered[digest].name, digest)
        before = {header.name for header in self._offered.values()}
        self._offered = offered
        self._kept = {d: header for d, header in found.items() if d not in offered}
        for name in before | {header.name for header in offered.values()}:
            self._tell(name)

    # Memory; the lock is held

    def _size(self, header: Header) -> int:
        """Bytes of a model's weights, with those of the copy that answers the fast rows.

        On a CPU nearly all of a U-Net's stand there twice: convolutions pack theirs, and compiled
        code does once more for each range of rows.
        """
        copied = self._compile or self._precision != torch.float32
        copy = header.size * self._precision.itemsize // 4 if copied else 0
        if self.device.type != "cpu" or not isinstance(header.description.architecture, UNetConfig):
            return header.size + copy
        return 2 * header.size + copy * (2 + len(RANGES) * self._compile)

    def _held(self) -> int:
        """Bytes of all loaded weights."""
        return sum(self._size(served.header) for served in self._loaded.values())

    def _can_fit(self, header: Header) -> bool:
        """Whether there is room beside the pinned models; with none pinned there always is."""
        pinned = [self._size(s.header) for digest, s in self._loaded.items() if self._pins[digest]]
        return not pinned or sum(pinned) + self._size(header) <= self.budget

    def _make_room(self, header: Header) -> None:
        """Unload what was used least recently until this model fits, or nothing is left."""
        unpinned = [digest for digest in self._loaded if not self._pins[digest]]
        while unpinned and self._held() + self._size(header) > self.budget:
            served = self._loaded.pop(unpinned.pop(0))
            self._tell(served.name)
            log.info("unloaded %s to make room for %s", served.name, header.name)
        if self._size(header) > self.budget:
            log.warning(
                "%s takes %d bytes for its weights, more than all models may take (%d)",
                header.name,
                self._size(header),
                self.budget,
            )

    def _tell(self, name: str) -> None:
        loaded = any(served.name == name for served in self._loaded.values())
        self._metrics.model_loaded[name].set(loaded)

    def _start(self) -> None:
        """Run the loader's thread, unless it runs; it looks at `_wanted` before it ends."""
        if self._loader is None:
            self._loader = threading.Thread(target=self._load_wanted, name="loader", daemon=True)
            self._loader.start()

    # The loader's thread

    def _load_wanted(self) -> None:
        """Load what is wanted, one by one, until nothing is or the next one does not fit."""
        use_cores(self.cores.share)
        while (header := self._next()) is not None:
            self._load(header)

    def _next(self) -> Header | None:
        """The first wanted model, with room made for it; None ends the thread."""
        with self._lock:
            first = next(iter(self._wanted.values()), None)
            if first is None or not self._can_fit(first.header):
                self._loader = None
                return None
            self._make_room(first.header)
            return first.header

    def _load(self, header: Header) -> None:
        served, reason = None, ""
        try:
            served = self._read(header)
        except Exception as error:
            # Kept as text: the traceback would keep the weights.
            reason = f"{header.name} cannot be loaded: {error}"
            log.exception("%s cannot be loaded", header.name)
        with self._lock:
            wanted = self._wanted.pop(header.digest)
            if served is None:
                self._failed[header.digest] = self._unloadable[header.digest] = reason
            else:
                self._unloadable.pop(header.digest, None)
                self._loaded[header.digest] = served
                self._tell(header.name)
        for ready in wanted.ready:
            try:
                ready()
            except Exception:
                log.exception("who waited for %s failed", header.name)

    def _read(self, header: Header) -> ServedModel:
        start = time.monotonic()
        checkpoint = _load(header)
        denoiser = checkpoint.denoiser(
            self.device, precision=self._precision, compile=self._compile
        )
        loaded = time.monotonic()
        curve = self._curves.of(checkpoint, denoiser, lambda: self._idle_but_for(header.digest))
        warm_up(checkpoint, denoiser, curve)
        self._metrics.knee_rows[header.name].set(curve.knee)
        log.info(
            "loaded %s in %.2f s, knee in %.2f s: %s",
            header.name,
            loaded - start,
            time.monotonic() - loaded,
            curve,
        )
        return ServedModel(header=header, checkpoint=checkpoint, denoiser=denoiser, curve=curve)

    def _idle_but_for(self, digest: str) -> bool:
        """Whether no model but this one, which is not loaded yet, has jobs in flight."""
        with self._lock:
            return not self._pins.keys() - {digest}


def default_budget(device: torch.device) -> int:
    """Half of the memory that the device has, or that a container may use, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory // 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit in it ("max")
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory // 2


def _load(header: Header) -> Checkpoint:
    """The checkpoint of this header, wherever it is now."""
    kept = replaced_path(header.path, header.digest)
    checkpoint = load(kept if kept.exists() else header.path)
    if checkpoint.digest != header.digest and kept.exists():  # replaced since the line above
        checkpoint = load(kept)
    if checkpoint.digest != header.digest:
        raise CheckpointError(f"{header.path} was replaced: it is now {checkpoint.digest}")
    return checkpoint


def _usable(path: Path) -> Header | str:
    """The header of a file; why it cannot be served, which clients are told, if it has none."""
    try:
        return read_header(path)
    except CheckpointError as error:
        log.error("left out: %s", error)
        return str(error).replace(str(path), path.name)


def _nothing() -> None:
    """Nobody waits for a model that is loaded ahead."""

"""From a run to a folder of models that workers serve.

A worker looks at its folder every few seconds. What appears there must be whole, and a version that
is replaced must stay for the jobs that were submitted with it: they ask for a digest, not a name.
So a published file comes by renaming, and what it replaces is kept first, for a week, in the folder
`replaced` (`model.checkpoint.replaced_path`), where workers find it by its digest.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from model import checkpoint as checkpoints
from model.checkpoint import REPLACED, CheckpointError, replaced_path

KEPT_DAYS = 7.0
"""Days that a replaced version is kept; finished jobs are kept for one by default."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"


class PublishError(ValueError):
    """What cannot be published; says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was done. path: the checkpoint that is served now. digest: its own; replaced: the digest
    of the version before, None if there was none. kept: where that is now. dropped: older versions
    that were removed.
    """

    path: Path
    digest: str
    replaced: str | None
    kept: Path | None
    dropped: tuple[Path, ...]


def find(run: Path) -> Path:
    """The checkpoint of a run: the file itself, or the only one of a folder.

    Raises `PublishError` for none or several.
    """
    if run.is_file():
        return run
    found = sorted(run.glob(f"*{_SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise PublishError(f"{run} has no checkpoint (*{_SUFFIX}); has `fokker train` finished?")
    names = ", ".join(path.name for path in found)
    raise PublishError(f"{run} has several checkpoints ({names}); name one of these files")


def publish(
    run: Path, name: str, folder: Path, *, force: bool = False, kept_days: float = KEPT_DAYS
) -> Published:
    """Put a run's checkpoint with its card and samples into a folder of models, under a name.

    force: replace another checkpoint of that name. kept_days: days after which replaced versions of
    this name are removed.

    Raises `PublishError`, also for a checkpoint that could not be served; the folder is then as it
    was, but where the disk was full or a file could not be written: each file is then old or new.
    """
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"{name!r} is no name for a model: it needs 1 to 100 letters, digits, dots, - or _, "
            "the first a letter or digit"
        )
    source = find(run)
    try:
        digest = checkpoints.load(source).digest
    except CheckpointError as error:
        raise PublishError(str(error)) from error
    target = folder / f"{name}{_SUFFIX}"
    if source.resolve() == target.resolve():
        raise PublishError(f"{source} is in the folder of models already")
    with _said(folder), _alone(folder):
        before = _digest(target)
        if before not in (None, digest) and not force:
            raise PublishError(
                f"{target} is another checkpoint ({before}); --force replaces it, or choose "
                "another name"
            )
        kept = None
        if before is not None and before != digest:
            kept = _keep(target, before)
        with source.open("rb") as content:
            _put(content, target)
        for suffix in (".png", ".md"):
            _put_beside(source, target, suffix)
        dropped = tuple(_drop(target, digest, kept_days))
    return Published(
        path=target,
        digest=digest,
        replaced=None if before == digest else before,
        kept=kept,
        dropped=dropped,
    )


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """The folder, made; what the file system refuses is a `PublishError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        where = error.filename or folder
        raise PublishError(f"{where} cannot be written: {error.strerror}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One publisher a folder at a time; the lock goes with the process that holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _digest(path: Path) -> str | None:
    """The digest of the checkpoint in place, usable or not; None if there is none."""
    return checkpoints.digest(path) if path.exists() else None


def _keep(target: Path, digest: str) -> Path:
    """Give the version in place its second name, by which it outlives being replaced."""
    kept = replaced_path(target, digest)
    kept.parent.mkdir(parents=True, exist_ok=True)
    for made in (kept.parent, kept.parent.parent):  # for a worker that runs as another user
        made.chmod(0o755)
    if not kept.exists():
        try:
            os.link(target, kept)
        except OSError:  # a file system without links
            with target.open("rb") as content:
                _put(content, kept)
    return kept


def _put(source: BinaryIO, target: Path) -> None:
    """Write a file: it appears whole, readable for a worker of another user, and stays."""
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as write:
            shutil.copyfileobj(source, write)
            write.flush()
            os.fsync(write.fileno())
        partial.chmod(0o644)
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _put_beside(source: Path, target: Path, suffix: str) -> None:
    """Copy what a run wrote beside its checkpoint; a card under its new name."""
    beside, there = source.with_suffix(suffix), target.with_suffix(suffix)
    if not beside.exists():
        there.unlink(missing_ok=True)  # the card of the version before would say what is not true
        return
    content = beside.read_bytes()
    if suffix == ".md":
        text = content.decode().replace(f"# {source.stem}\n", f"# {target.stem}\n", 1)
        content = text.replace(f"({source.stem}.png)", f"({target.stem}.png)").encode()
    _put(BytesIO(content), there)


def _drop(target: Path, digest: str, kept_days: float) -> Iterator[Path]:
    """Remove versions of this name that were replaced long ago, or are in place again."""
    for kept in sorted(target.parent.glob(f"{REPLACED}/*/{target.name}")):
        # A file's change time is set when its other name goes, which is when it was replaced.
        old = time.time() - kept.stat().st_ctime > kept_days * 86_400
        if old or kept.parent == replaced_path(target, digest).parent:
            kept.unlink()
            if not any(kept.parent.iterdir()):
                kept.parent.rmdir()
            yield kept

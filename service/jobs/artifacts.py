"""Where the bytes of artifacts are kept: with their jobs, or in files of their own.

Which artifacts a job has is for the job store to say, behind the fence of its lease. What it
remembers of each is what `Artifacts.put` gave: the bytes themselves, or the path of a file. A file
is written under a name that nobody else has and is entered afterwards, so a worker that lost its
lease replaces nothing, and what it wrote is never seen.
"""

import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import fsspec.core
from typing_extensions import override

from service.jobs.errors import ArtifactsError
from service.settings import Settings, SettingsError

CHUNK = 2**20
"""Bytes of a file that are read at once."""

Kept = bytes | str
"""The bytes of an artifact, or the path of the file that has them."""


@dataclass(frozen=True)
class Content:
    """An artifact to be read: its bytes, in chunks, and how many they are."""

    size: int
    chunks: Iterator[bytes]

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks)


class Artifacts(ABC):
    """Keeps the bytes of artifacts; every method blocks, and may raise `ArtifactsError`."""

    @abstractmethod
    def put(self, job_id: str, name: str, data: bytes) -> Kept:
        """Keep an artifact's bytes; what is to be entered in its job."""

    @abstractmethod
    def drop(self, kept: Kept) -> None:
        """Forget what `put` gave, since it was not entered."""

    @abstractmethod
    def open(self, kept: Kept) -> Content | None:
        """The bytes; None if they are no longer there."""

    @abstractmethod
    def remove(self, job_id: str) -> None:
        """Forget all that was ever put for a job."""

    @abstractmethod
    def older_than(self, seconds: float) -> set[str]:
        """The jobs whose artifacts were all put so long ago, where they do not go with the job."""


class WithTheJob(Artifacts):
    """The job store keeps the bytes, and lets them go with their job."""

    @override
    def put(self, job_id: str, name: str, data: bytes) -> Kept:
        return data

    @override
    def drop(self, kept: Kept) -> None:
        pass

    @override
    def open(self, kept: Kept) -> Content | None:
        if isinstance(kept, str):
            raise ArtifactsError(
                "this artifact is in a file, and FOKKER_ARTIFACTS is not set; set it to where the "
                "files are"
            )
        return Content(len(kept), iter([kept]))

    @override
    def remove(self, job_id: str) -> None:
        pass

    @override
    def older_than(self, seconds: float) -> set[str]:
        return set()


class InFiles(WithTheJob):
    """Files under a URL of fsspec, `<job>/<seconds>-<random>/<name>`, the seconds being those of
    the Unix epoch, since not every file system tells the age of a file.
    """

    _FILE = re.compile(r"([A-Za-z0-9_-]{1,64})/([0-9]{1,12})-[0-9a-f]{16}/[^/]+")

    def __init__(self, url: str) -> None:
        """Raises `ImportError` or `ValueError` where fsspec has no such kind of URL."""
        # Listings that are remembered would hide what other processes write.
        options = {"use_listings_cache": False}
        if url.startswith(("file:", "local:")):  # elsewhere folders need no making
            options["auto_mkdir"] = True
        self._files, self._root = fsspec.core.url_to_fs(url, **options)

    @override
    def put(self, job_id: str, name: str, data: bytes) -> Kept:
        path = f"{job_id}/{int(time.time())}-{secrets.token_hex(8)}/{name}"
        with self._errors("written"):
            self._files.pipe_file(self._at(path), data)
        return path

    @override
    def drop(self, kept: Kept) -> None:
        if isinstance(kept, str):
            with self._errors("removed"):
                self._files.rm(self._at(kept))

    @override
    def open(self, kept: Kept) -> Content | None:
        if isinstance(kept, bytes):  # of before the setting
            return super().open(kept)
        with self._errors("read"):
            try:
                file = self._files.open(self._at(kept), "rb", block_size=CHUNK)
            except FileNotFoundError:
                if self._files.exists(self._root):
                    return None
                raise
            size = int(file.size)
            if size > CHUNK:
                return Content(size, self._chunks(file))
            with file:
                return Content(size, iter([file.read()]))

    def _chunks(self, file: Any) -> Iterator[bytes]:
        with file, self._errors("read"):
            while chunk := file.read(CHUNK):
                yield chunk

    @override
    def remove(self, job_id: str) -> None:
        with self._errors("removed"), suppress(FileNotFoundError):  # it may have left none
            self._files.rm(self._at(job_id), recursive=True)

    @override
    def older_than(self, seconds: float) -> set[str]:
        last: dict[str, int] = {}
        with self._errors("listed"):
            for path in self._files.find(self._root):
                # What is not ours is left alone.
                if match := self._FILE.fullmatch(path[len(self._root) :].lstrip("/")):
                    job_id, written = match[1], int(match[2])
                    last[job_id] = max(written, last.get(job_id, 0))
        limit = time.time() - seconds
        return {job_id for job_id, written in last.items() if written < limit}

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Each kind of file system has errors of its own: the system's, botocore's, aiohttp's.
            said = f"{type(error).__name__}: {error}"
            raise ArtifactsError(f"artifacts cannot be {done} now ({said})") from error


def open_artifacts(settings: Settings) -> Artifacts:
    """Where FOKKER_ARTIFACTS says; raises `SettingsError` if that cannot be."""
    url = settings.artifacts
    if url is None:
        return WithTheJob()
    if "://" not in url:
        raise SettingsError(
            f"FOKKER_ARTIFACTS: {url!r} is no URL; give one like file:///srv/fokker or s3://bucket"
        )
    try:
        return InFiles(url)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"FOKKER_ARTIFACTS: {url!r}: {error}; for s3:// install fokker[s3]"
        ) from error

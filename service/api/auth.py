"""Who asks: API keys, and URLs that are signed for what cannot send a header.

A key belongs to an owner, who sees the jobs that were submitted with it and no others. Keys are
long and random, so one salted SHA-256 keeps them; they are compared in constant time.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi import Request

from service.api.problems import Problem
from service.settings import Settings, SettingsError

OWNER = re.compile(r"[A-Za-z0-9._-]{1,64}")
SHORTEST = 16  # characters of a key


@dataclass(frozen=True)
class Key:
    """An owner's key, as its salt and hash."""

    owner: str
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, owner: str, key: str) -> "Key":
        """Salted and hashed."""
        salt = secrets.token_bytes(16)
        return cls(owner, salt, _hash(salt, key))

    def matches(self, given: str) -> bool:
        """Whether this is the key, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(self.digest, _hash(self.salt, given))

    def __str__(self) -> str:
        """The line of a file of keys: `owner:salt:hash`, both in hexadecimal."""
        return f"{self.owner}:{self.salt.hex()}:{self.digest.hex()}"

    @classmethod
    def from_line(cls, line: str) -> "Key":
        """The inverse of `str`; raises `ValueError`."""
        owner, salt, digest = line.split(":")
        key = cls(_owner(owner), bytes.fromhex(salt), bytes.fromhex(digest))
        if len(key.digest) != hashlib.sha256().digest_size:
            raise ValueError("its hash is no SHA-256")
        return key


def _hash(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode()).digest()


def _owner(name: str) -> str:
    if not OWNER.fullmatch(name):
        raise ValueError(f"the owner {name!r} must be 1 to 64 letters, digits, dots, - or _")
    return name


def new_key() -> str:
    """A key that nobody guesses: 256 bits."""
    return "fk_" + secrets.token_urlsafe(32)


def read_keys(settings: Settings) -> list[Key]:
    """The keys of FOKKER_API_KEYS and of FOKKER_API_KEYS_FILE; `SettingsError` for bad ones."""
    keys = []
    given = "" if settings.api_keys is None else settings.api_keys.get_secret_value()
    for number, pair in enumerate(filter(None, map(str.strip, given.split(",")))):
        owner, _, key = pair.partition(":")
        try:
            if len(key) < SHORTEST:
                raise ValueError(f"its key needs at least {SHORTEST} characters")
            keys.append(Key.of(_owner(owner), key))
        except ValueError as error:
            raise SettingsError(
                f"FOKKER_API_KEYS: entry {number + 1} is not owner:key ({error}); "
                "`fokker key OWNER` makes one"
            ) from error
    if settings.api_keys_file is not None:
        keys += _keys_of_file(settings.api_keys_file)
    return keys


def _keys_of_file(path: Path) -> list[Key]:
    keys = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SettingsError(f"FOKKER_API_KEYS_FILE: {error}") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            try:
                keys.append(Key.from_line(line))
            except ValueError as error:
                raise SettingsError(
                    f"FOKKER_API_KEYS_FILE: line {number} is not owner:salt:hash ({error}); "
                    "`fokker key OWNER --hashed` makes one"
                ) from error
    return keys


def check_exposure(settings: Settings, host: str, keys: list[Key]) -> None:
    """Raises `SettingsError` where anyone on a network could use the service without a key."""
    if keys or settings.no_auth or is_loopback(host):
        return
    raise SettingsError(
        f"the API would listen on {host} for anyone: set FOKKER_API_KEYS (`fokker key OWNER` makes "
        "a key), or say --no-auth if something in front of it asks who comes"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """Says whose request it is."""

    def __init__(self, keys: list[Key], signer: "Signer") -> None:
        """keys: none lets everyone in, as the owner without a name."""
        self._keys = keys
        self._signer = signer

    def owner_of(self, request: Request) -> str:
        """The owner of the key in the request, "" where no keys are asked for.

        Raises `Problem` 401 for a missing or unknown key.
        """
        if not self._keys:
            return ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        # All are compared, so that the time does not tell which owner was near.
        owners = [known.owner for known in self._keys if known.matches(key)]
        if owners:
            return owners[0]
        detail = "this API key is unknown" if key else "an API key is needed"
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            f"{detail}; send it as `Authorization: Bearer KEY`",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def owner_or_signed(self, request: Request) -> str | None:
        """The same, but None for a URL that was signed for whoever has it."""
        if "signature" in request.query_params:
            await self._signer.check(request.url.path, request.query_params)
            return None
        return self.owner_of(request)


class Signer:
    """Makes URLs that work without a key, for a while, and knows them again (HMAC-SHA-256)."""

    def __init__(self, find_secret: Callable[[], Awaitable[bytes]], seconds: int) -> None:
        """find_secret: asked once, when it is needed. seconds: how long a URL works."""
        self._find_secret, self._seconds = find_secret, seconds
        self._secret: bytes | None = None

    async def sign(self, path: str) -> str:
        """The path with when it ends to work, and the signature."""
        expires = int(time.time()) + self._seconds
        return f"{path}?expires={expires}&signature={await self._signature(path, str(expires))}"

    async def check(self, path: str, query: Mapping[str, str]) -> None:
        """Raises `Problem` 403 for a signature that was not made here for this path, or is over."""
        expires, given = query.get("expires", ""), query["signature"]
        right = await self._signature(path, expires)
        if not hmac.compare_digest(right.encode(), given.encode()):
            raise Problem(HTTPStatus.FORBIDDEN, "the signature is not that of this URL")
        if int(expires) < time.time():
            raise Problem(
                HTTPStatus.FORBIDDEN, "this signed URL has expired; ask for the job again"
            )

    async def _signature(self, path: str, expires: str) -> str:
        if self._secret is None:
            self._secret = await self._find_secret()
        mac = hmac.digest(self._secret, f"{path}\n{expires}".encode(), "sha256")
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

"""Where the service is and how it is talked to: what both clients make their httpx client of."""

import os
from ipaddress import ip_address
from typing import Any

import httpx

from service.client.errors import InvalidInput
from service.client.events import SILENCE

DEFAULT_URL = "http://127.0.0.1:8000"


class Connection:
    """The address, the key and the limits; the key is kept in `options` alone.

    url: FOKKER_URL if None, else the service of `fokker up` on this machine.
    api_key: FOKKER_API_KEY if None; "" for none.
    timeout: seconds to connect, and between two signs of life in one answer.

    Raises InvalidInput for an address or a key that cannot be used.
    """

    def __init__(self, url: str | None, api_key: str | None, timeout: float) -> None:
        self.url = _address(url or os.environ.get("FOKKER_URL") or DEFAULT_URL)
        key = _key(os.environ.get("FOKKER_API_KEY", "") if api_key is None else api_key)
        self.options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": timeout,
            # A proxy of the environment is not asked for what is on this machine.
            "trust_env": not _loopback(httpx.URL(self.url).host),
        }
        self.streaming = httpx.Timeout(timeout, read=max(timeout, SILENCE))


def _address(given: str) -> str:
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"url: {error}, given {given!r}") from error
    if url.userinfo:
        raise InvalidInput(
            "url: it holds a user or a password; leave them out, and give an api_key"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"url: given {given!r}; an address such as {DEFAULT_URL} is needed")
    return str(url).rstrip("/")


def _key(given: str) -> str:
    key = given.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput("api_key: it holds characters that no key has; copy it again, whole")
    return key


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

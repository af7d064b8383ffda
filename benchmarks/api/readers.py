"""The readers of the streams, a process of its own: `python -m benchmarks.api.readers`.

Reads a JSON document {url, jobs, streams} from standard input, opens the streams, evenly over the
jobs, says `open` when each has had an event, and at last, when all have ended, what they saw.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.api.http import Events, address, request

TOGETHER = 50  # streams that are opened at a time


@dataclass
class Reader:
    """One stream: the numbers of the events that it has seen, and how late they were."""

    ended: asyncio.Future[None]
    begun: asyncio.Future[None]
    seen: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def see(self, block: bytes) -> None:
        """Note an event; those of the writer carry their number and the time."""
        now = time.time()
        lines = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
        self.kinds[lines[b"event"].decode()] += 1
        self.ids.append(lines[b"id"].decode())
        if not self.begun.done():
            self.begun.set_result(None)
        if b'"n"' in block:
            told = json.loads(lines[b"data"])
            self.seen.append(told["n"])
            self.delays.append(now - told["t"])


async def read(given: dict[str, Any]) -> dict[str, Any]:
    """Open all streams and follow them to their ends."""
    loop = asyncio.get_running_loop()
    host, port = address(given["url"])
    readers = []
    for number in range(given["streams"]):
        job = given["jobs"][number % len(given["jobs"])]
        reader = Reader(loop.create_future(), loop.create_future())
        readers.append(reader)
        asked = request("GET", f"/jobs/{job}/events")

        def made(reader: Reader = reader, asked: bytes = asked) -> Events:
            return Events(asked, reader.see, lambda: reader.ended.set_result(None))

        await loop.create_connection(made, host, port)
        if number % TOGETHER == TOGETHER - 1:
            await asyncio.gather(*(reader.begun for reader in readers))
    await asyncio.gather(*(reader.begun for reader in readers))
    print("open", flush=True)
    await asyncio.gather(*(reader.ended for reader in readers))
    whole = list(range(given["events"]))
    return {
        "delays": [delay for reader in readers for delay in reader.delays],
        "whole": sum(reader.seen == whole for reader in readers),
        "ended": sum(reader.kinds["succeeded"] == 1 for reader in readers),
        "gaps": sum(reader.kinds["gap"] for reader in readers),
        "repeats": sum(len(reader.ids) - len(set(reader.ids)) for reader in readers),
        "received": sum(len(reader.ids) for reader in readers),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(read(json.loads(sys.stdin.readline())))), flush=True)

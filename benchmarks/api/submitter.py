"""The clients that submit, a process of its own: `python -m benchmarks.api.submitter`.

Reads a JSON document {url, connections, rate, seconds} from standard input. With a rate, requests
are due at fixed times, whether or not the ones before were answered, and their latency counts from
when they were due; without (null), each connection sends its next request when it has an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, deque
from typing import Any

from benchmarks.api.http import Answers, address, request

BODY = {"model": "digits", "count": 4, "sampler": {"name": "ddpm", "steps": 250}}


class Clients:
    """Connections that are free, and requests that are due."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.loop = asyncio.get_running_loop()
        # In turn, since the server closes a connection that was not used for five seconds.
        self.free: deque[Answers] = deque()
        self.due: deque[float] = deque()  # when each request that waits for a connection was due
        self.sent: dict[Answers, float] = {}
        self.answered: list[tuple[float, float, int]] = []  # when due, seconds taken, status
        self.start = self.end = 0.0
        self.number = 0
        self.other: Counter[str] = Counter()  # bodies that are neither 202 nor a refusal

    async def run(self) -> dict[str, Any]:
        """Send for as long as is asked, and wait for the answers."""
        host, port = address(self.given["url"])
        for _ in range(self.given["connections"]):
            _, made = await self.loop.create_connection(lambda: Answers(self.take), host, port)
            self.free.append(made)
        self.start = self.loop.time() + 0.1
        self.end = self.start + self.given["seconds"]
        rate = self.given["rate"]
        if rate is None:
            for connection in self.free:
                self.send(connection, self.loop.time())
            await asyncio.sleep(self.given["seconds"])
        else:
            await self.pace(rate)
        while self.sent:
            await asyncio.sleep(0.05)
            if any(connection.transport.is_closing() for connection in self.sent):
                raise ConnectionError("a connection was closed before its answer")
        return {"answers": self.answered, "other": dict(self.other.most_common(5))}

    async def pace(self, rate: float) -> None:
        """Send what is due."""
        for k in range(round(rate * self.given["seconds"])):
            when = self.start + k / rate
            if (pause := when - self.loop.time()) > 0.001:
                await asyncio.sleep(pause)
            if self.free:
                self.send(self.free.popleft(), when)
            else:
                self.due.append(when)

    def send(self, connection: Answers, when: float) -> None:
        """Send a request that was due then."""
        self.number += 1
        body = json.dumps(BODY | {"seed": self.number}).encode()
        self.sent[connection] = when
        connection.transport.write(request("POST", "/generate", body))

    def take(self, connection: Answers, status: int, body: bytes) -> None:
        """Note an answer, and send what waits."""
        when, now = self.sent.pop(connection), self.loop.time()
        self.answered.append((when - self.start, now - when, status))
        if status not in (202, 429, 503):
            self.other[body[:200].decode()] += 1
        if self.due:
            self.send(connection, self.due.popleft())
        elif self.given["rate"] is None and now < self.end:
            self.send(connection, now)
        else:
            self.free.append(connection)


async def submit(given: dict[str, Any]) -> dict[str, Any]:
    return await Clients(given).run()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(submit(json.loads(sys.stdin.readline())))), flush=True)

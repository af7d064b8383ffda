"""The worker's side of the job store in Redis.

A lease is a token in the job's hash, a key that lives as long as it is renewed, and an entry in an
index that says when to look. Every write is a script that checks the token first.
"""

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import redis
from redis.commands.core import Script
from typing_extensions import override

from service.jobs.artifacts import Kept
from service.jobs.beat import Beat
from service.jobs.errors import StoreError
from service.jobs.lease import LEASE_EXPIRED, WORKER_LOST, Claim, End, Held, WorkerStore
from service.jobs.parameters import Priority
from service.jobs.redis_store import hashes, keys, scripts
from service.jobs.redis_store.connection import Client, memory_low
from service.settings import Settings

WRITTEN: dict[int, Held] = {1: "held", 0: "lost", -1: "deleted"}
"""What a script that writes for a claim gives; see `refusal` of prelude.lua."""


class RedisWorkerStore(WorkerStore):
    """A worker's jobs in Redis, over a blocking client."""

    def __init__(self, settings: Settings, worker_id: str, hint: Callable[[str], None]) -> None:
        super().__init__(settings, worker_id, hint)
        self._redis = Client.from_url(settings.require_redis())
        self._scripts: dict[str, Script] = {}
        self._unanswered: list[str] = []  # tokens of claims that may have been granted

    @override
    def close(self) -> None:
        self._redis.close()

    @override
    def claim(self, digests: Collection[str], rooms: Mapping[Priority, int]) -> Claim | None:
        try:
            token = self._unanswered.pop()
        except IndexError:
            token = secrets.token_hex(16)
        try:
            flat = self._run(
                "claim",
                token=token,
                lease=self.settings.lease,
                worker=self.worker_id,
                digests=list(digests),
                rooms=dict(rooms),
            )
        except StoreError:
            self._unanswered.append(token)
            raise
        return None if flat is None else Claim(self, hashes.job_of_flat(flat), token)

    @override
    def canceled(self) -> dict[str, str]:
        asked = cast(dict[bytes, bytes], self._redis.hgetall(keys.CANCELED))
        return {job_id.decode(): reason.decode() for job_id, reason in asked.items()}

    @override
    def renew(self, claims: Sequence[Claim]) -> list[Held]:
        script = self._script("renew")
        try:
            return self._renew_by(script.sha, claims)
        except redis.exceptions.NoScriptError:  # of a server that has not seen it yet
            return self._renew_by(self._redis.script_load(script.script), claims)

    def _renew_by(self, sha: str, claims: Sequence[Claim]) -> list[Held]:
        with self._redis.pipeline(transaction=False) as batch:
            for claim in claims:
                said = scripts.arguments(
                    id=claim.job.id, token=claim.token, lease=self.settings.lease
                )
                batch.evalsha(sha, len(keys.SHARED), *keys.SHARED, *said)
            return [cast(Held, answer.decode()) for answer in batch.execute()]

    @override
    def reap(self) -> int:
        # Nothing is reaped for one lease after Redis started: no owner could renew before.
        lease = self.settings.lease
        if not self._its_turn(int(lease * 250) or 1):
            return 0
        if self._redis.info("server")["uptime_in_seconds"] < lease:
            return 0
        seconds, microseconds = self._redis.time()
        now = seconds + microseconds / 1e6
        requeued = 0
        for raw in cast(list[bytes], self._redis.zrangebyscore(keys.RUNNING, "-inf", now)):
            requeued += self._reap_one(raw.decode())
        return requeued

    def _its_turn(self, milliseconds: int) -> bool:
        """Whether nobody reaped just now; a full Redis cannot tell: a job is reaped once anyway."""
        try:
            turn = self._redis.set(keys.REAPER, self.worker_id, nx=True, px=milliseconds)
        except StoreError:
            return True
        return bool(turn)

    def _reap_one(self, job_id: str) -> int:
        outcome = self._run(
            "reap",
            id=job_id,
            attempts=self.settings.attempts,
            reason=WORKER_LOST,
            error=json.dumps(LEASE_EXPIRED),
            failed=json.dumps({"error": LEASE_EXPIRED}),
        )
        if outcome != b"queued":
            return 0
        self.hint(job_id)
        return 1

    @override
    def inputs(self, job_id: str) -> bytes | None:
        return cast(bytes | None, self._redis.get(keys.inputs(job_id)))

    @override
    def announce(
        self,
        cards: Sequence[Mapping[str, Any]],
        ttl: float,
        rates: Mapping[str, float] | None = None,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        with self._redis.pipeline() as batch:
            for card in cards:
                batch.hset(keys.MODELS, card["name"], json.dumps(card))
            beat = Beat(
                models=[card["name"] for card in cards],
                rates=dict(rates or {}),
                failed=dict(failed or {}),
            )
            batch.set(keys.worker(self.worker_id), beat.to_json(), px=int(ttl * 1000))
            batch.sadd(keys.WORKERS, self.worker_id)
            try:
                batch.execute()
            except StoreError:  # full, perhaps: it may still prolong what stands there
                self._redis.pexpire(keys.worker(self.worker_id), int(ttl * 1000))
                raise

    @override
    def withdraw(self) -> None:
        self._redis.delete(keys.worker(self.worker_id))
        self._redis.srem(keys.WORKERS, self.worker_id)

    @override
    def look_at_memory(self) -> None:
        self.short = memory_low(self._redis.info("memory"))

    @override
    def write_event(self, claim: Claim, kind: str, data: str) -> Held:
        settings = self.settings
        return self._fenced(
            "event",
            claim,
            type=kind,
            data=data,
            most_previews=settings.max_previews,
            preview_bytes=settings.preview_bytes,
        )

    @override
    def write_artifact(self, claim: Claim, name: str, media_type: str, kept: Kept) -> Held:
        data, file = (kept, None) if isinstance(kept, bytes) else (None, kept)
        return self._fenced("artifact", claim, data, name=name, media_type=media_type, file=file)

    @override
    def finish(self, claim: Claim, end: End) -> Held:
        return self._fenced(
            "finish",
            claim,
            status=end.status,
            field=end.field,
            document=end.stored,
            data=end.data,
        )

    @override
    def hand_back(self, claim: Claim, reason: str) -> Held:
        return self._fenced("release", claim, reason=reason)

    def _fenced(
        self, script: str, claim: Claim, data: bytes | None = None, /, **named: Any
    ) -> Held:
        return WRITTEN[self._run(script, data, id=claim.job.id, token=claim.token, **named)]

    def _run(self, script: str, data: bytes | None = None, /, **named: Any) -> Any:
        named |= {"ttl": self.settings.job_ttl, "stream_length": self.settings.stream_length}
        return self._script(script)(keys.SHARED, scripts.arguments(data, **named))

    def _script(self, name: str) -> Script:
        """Registered once: it hashes the script's text."""
        if name not in self._scripts:
            self._scripts[name] = self._redis.register_script(scripts.source(name))
        return self._scripts[name]

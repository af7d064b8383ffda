"""The job store in Redis, for any number of API processes and workers.

A job is a hash, its progress a stream, its artifacts strings; each move of a job is a Lua script of
this folder. Times are Redis's own. `store` is the API's side, `worker` the worker's.
"""

from service.jobs.redis_store.store import RedisJobStore
from service.jobs.redis_store.worker import RedisWorkerStore

__all__ = ["RedisJobStore", "RedisWorkerStore"]

"""The job store in the memory of one process, for an API and workers that share it.

It keeps the same promises as `redis_store`, as long as the process lives: `Memory` is what the two
sides share, `store` is the API's side, `worker` the worker's.
"""

from service.jobs.memory_store.memory import Memory
from service.jobs.memory_store.store import MemoryJobStore
from service.jobs.memory_store.worker import MemoryWorkerStore

__all__ = ["Memory", "MemoryJobStore", "MemoryWorkerStore"]

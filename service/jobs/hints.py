"""Hints: Celery messages that wake a worker, and nothing more.

A hint may be lost, doubled or late: which job is next is for the store to say
(`lease.WorkerStore`), and workers look there without a hint, too.
"""

from celery import Celery

TASK_NAME = "fokker.run"

QUEUE = "fokker"
"""The list in Redis that holds the hints."""


def make_celery(redis_url: str) -> Celery:
    """The Celery application of both sides; the worker registers its task on it."""
    app = Celery("fokker", broker=redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE,
        # A hint that waits for longer at a worker without room goes to another one, too.
        broker_transport_options={
            "visibility_timeout": 3600,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
        },
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return app


class Hinter:
    """Sends hints; safe to share between threads."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery

    def hint(self, job_id: str) -> None:
        """Say that a job waits, now because of `job_id`; whoever wakes takes what is first.

        Raises kombu's `OperationalError` if the broker is away.
        """
        self._celery.send_task(TASK_NAME, args=[job_id], retry=False)

    def close(self) -> None:
        """Give the connections back."""
        self._celery.close()

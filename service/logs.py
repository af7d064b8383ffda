"""Logs on standard error: a line an event, for people or as JSON, with what it is about.

A line about a job has its `job_id`, one written while a request is answered its `request_id`.
What URLs hold of signatures and keys is left out.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from service.settings import Settings

SECRET = re.compile(r"((?:signature|api_?key|key|token)=)[^\s&\"]+", re.IGNORECASE)
OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery")
"""Loggers that would write lines of their own form."""


def configure(settings: Settings) -> None:
    """Let all loggers of the process write this way."""
    json = settings.log_format == "json"
    processors: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # Without the values of variables, which may be a user's images or keys.
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _redact,
            ],
            processors=processors,
        )
    )
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level)
    for name in OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a webhook's URL may be a secret


def _redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.pop("color_message", None)  # uvicorn says it twice
    event["event"] = SECRET.sub(r"\1…", str(event["event"]))
    return event

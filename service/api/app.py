"""The application: routes, problem documents and what lives as long as the process."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from redis.exceptions import RedisError

from service.api import health, jobs, models, operations, problems
from service.api.dependencies import Services
from service.api.schemas import ProblemDocument, component_schemas
from service.jobs.hints import Hinter, make_celery
from service.jobs.store import JobStore
from service.settings import Settings

log = logging.getLogger(__name__)

DEADLINES = 0.5
"""Seconds between two looks for jobs whose deadline has passed."""

DESCRIPTION = "Diffusion models behind an API: generate, encode and likelihood, streamed."


def create_app(settings: Settings) -> FastAPI:
    """The API over the Redis of `settings`; raises `SettingsError` if none is set."""
    url = settings.require_redis()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store, hinter = JobStore(settings), Hinter(make_celery(url))
        app.state.services = Services(settings, store, hinter)
        deadlines = asyncio.create_task(_keep_deadlines(store))
        try:
            yield
        finally:
            deadlines.cancel()
            hinter.close()
            await store.close()

    app = FastAPI(title="Fokker", description=DESCRIPTION, lifespan=lifespan)
    problems.install(app)
    for part in (operations, jobs, models, health):
        app.include_router(part.router)
    _document_request_bodies(app)
    return app


async def _keep_deadlines(store: JobStore) -> None:
    """Settle late jobs for as long as the process lives, also while no worker does."""
    while True:
        try:
            await store.settle()
        except RedisError as error:
            log.warning("deadlines cannot be kept now: %s", error)
        except Exception:
            log.exception("keeping deadlines goes on after an error")
        await asyncio.sleep(DEADLINES)


def _document_request_bodies(app: FastAPI) -> None:
    """Add the schemas that the routes only refer to, since they read their bodies by hand."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas[ProblemDocument.__name__] = ProblemDocument.model_json_schema()
        schemas.update(component_schemas())
        return document

    app.openapi = openapi  # type: ignore[method-assign]

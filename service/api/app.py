"""The application: routes, problem documents and what lives as long as the process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from service.api import health, jobs, models, operations, problems
from service.api import metrics as scrape
from service.api.auth import Gate, Signer, read_keys
from service.api.dependencies import Services, State
from service.api.figures import ApiMetrics, Count
from service.api.rates import Rates
from service.api.request_ids import RequestIds
from service.api.schemas import ProblemDocument, component_schemas
from service.api.webhooks import deliver_due
from service.jobs.hints import Hinter, make_celery
from service.jobs.redis_store import RedisJobStore
from service.jobs.store import JobStore, StoreError
from service.settings import Settings

log = logging.getLogger(__name__)

CHORES = 0.5
"""Seconds between two looks at what the API has to do without being asked."""

DESCRIPTION = "Diffusion models behind an API: generate, encode and likelihood, streamed."


def create_app(
    settings: Settings, store: JobStore | None = None, hint: Callable[[str], None] | None = None
) -> FastAPI:
    """The API over the Redis of `settings`; raises `SettingsError` if none is set.

    store: keeps the jobs instead, for workers that share it; `hint(job_id)` tells them that one
    waits, from another thread than the loop's.
    """
    url = settings.require_redis() if store is None else None
    keys, metrics = read_keys(settings), ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs = store or RedisJobStore(settings)
        hinter = Hinter(make_celery(url)) if url else None
        signer = Signer(lambda: _secret(settings, jobs), settings.signed_ttl)
        services = app.state.services = Services(
            settings=settings,
            store=jobs,
            hint=hint or (hinter.hint if hinter else _nobody),
            gate=Gate(keys, signer),
            signer=signer,
            rates=Rates(url, settings.requests_per_minute),
            metrics=metrics,
            state=State(),
        )
        chores = asyncio.create_task(_do_chores(services))
        try:
            yield
        finally:
            chores.cancel()
            if hinter is not None:
                hinter.close()
            await services.rates.close()
            await jobs.close()

    app = FastAPI(title="Fokker", description=DESCRIPTION, lifespan=lifespan)
    if origins := [origin for origin in settings.cors_origins.split(",") if origin]:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Count, metrics=metrics)
    app.add_middleware(RequestIds)
    problems.install(app)
    for part in (operations, jobs, models, health, scrape):
        app.include_router(part.router)
    _document_request_bodies(app)
    return app


def _nobody(job_id: str) -> None:
    """Hint at nobody: workers look by themselves, a moment later."""


async def _secret(settings: Settings, store: JobStore) -> bytes:
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    return await store.secret()


async def _do_chores(services: Services) -> None:
    """Settle late and abandoned jobs as long as the process lives, also while no worker does."""
    failing = False
    while True:
        try:
            await services.store.settle()
            await deliver_due(services)
            services.state.memory_low = await services.store.memory_low()
            failing = False
        except Exception as error:
            # Said once: the store may be away for long.
            if not failing:
                trace = None if isinstance(error, StoreError) else error
                log.warning(
                    "late and abandoned jobs cannot be settled now: %s", error, exc_info=trace
                )
            failing = True
        await asyncio.sleep(CHORES)


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

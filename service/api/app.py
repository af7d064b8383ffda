"""The application: routes, problem documents and what lives as long as the process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from service.api import health, jobs, models, operations, problems
from service.api import metrics as scrape
from service.api.auth import Gate, Signer, read_keys
from service.api.cards import KEPT, read_cards
from service.api.dependencies import Services, State
from service.api.document import document
from service.api.failures import Failures
from service.api.figures import ApiMetrics, Count
from service.api.heads import Heads
from service.api.rates import Rates
from service.api.request_ids import RequestIds
from service.api.waker import Waker
from service.api.webhooks import Deliveries
from service.jobs.artifacts import open_artifacts
from service.jobs.errors import StoreError
from service.jobs.hints import Hinter, make_celery
from service.jobs.recent import Recent
from service.jobs.redis_store import RedisJobStore
from service.jobs.store import JobStore
from service.jobs.tasks import end
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
    open_artifacts(settings)  # what is wrong with it is said at the start

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs = store or RedisJobStore(settings)
        hinter = Hinter(make_celery(url)) if url else None
        waker = Waker(hint or (hinter.hint if hinter else _nobody))
        signer = Signer(lambda: _secret(settings, jobs), settings.signed_ttl)
        services = app.state.services = Services(
            settings=settings,
            store=jobs,
            cards=Recent(lambda: read_cards(jobs), KEPT),
            waker=waker,
            gate=Gate(keys, signer),
            signer=signer,
            rates=Rates(url, settings.requests_per_minute),
            metrics=metrics,
            state=State(),
        )
        deliveries = Deliveries(services)
        tasks = [
            asyncio.create_task(_every(CHORES, partial(_do_chores, services))),
            asyncio.create_task(_every(CHORES, deliveries.begin)),
            asyncio.create_task(_every(_pause_of_sweeps(settings), jobs.sweep)),
            asyncio.create_task(waker.run()),
        ]
        try:
            yield
        finally:
            await end(*tasks)
            await deliveries.close()
            if hinter is not None:
                hinter.close()
            await services.rates.close()
            await jobs.close()

    # Swagger UI from a package, not from a CDN: the page works where nothing else can be reached.
    app = FastAPIOffline(
        title="Fokker",
        description=DESCRIPTION,
        version=version("fokker"),
        lifespan=lifespan,
        redoc_url=None,
    )
    # The last one is the outermost.
    app.add_middleware(Heads)
    app.add_middleware(Failures)
    if origins := [origin for origin in settings.cors_origins.split(",") if origin]:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(RequestIds)
    app.add_middleware(Count, metrics=metrics)
    problems.install(app)
    for part in (operations, jobs, models, health, scrape):
        app.include_router(part.router)
    document(app, keyed=bool(keys))
    return app


def _nobody(job_id: str) -> None:
    """Hint at nobody: workers look by themselves, a moment later."""


async def _secret(settings: Settings, store: JobStore) -> bytes:
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    return await store.secret()


async def _every(seconds: float, chore: Callable[[], Awaitable[object]]) -> None:
    """Do a chore again and again, until it is canceled."""
    failing = False
    while True:
        try:
            await chore()
            failing = False
        except Exception as error:
            # Said once: the store may be away for long.
            if not failing:
                trace = None if isinstance(error, StoreError) else error
                log.warning("what happens without a request waits: %s", error, exc_info=trace)
            failing = True
        await asyncio.sleep(seconds)


async def _do_chores(services: Services) -> None:
    """Settle late and abandoned jobs, also while no worker lives, and look at the memory."""
    await services.store.settle()
    services.state.memory_low = await services.store.memory_low()


def _pause_of_sweeps(settings: Settings) -> float:
    """Seconds between two looks at the files of artifacts: a tenth of their lifetime, about."""
    return min(600.0, max(1.0, settings.job_ttl / 10))

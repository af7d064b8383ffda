"""`/metrics`: what the API has answered, and what waits, in Prometheus's text format."""

from collections import defaultdict

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.dependencies import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Give the figures of this process and of the queues."""
    found, store = services.metrics, services.store
    cards = await store.models()
    jobs, waiting = await store.waiting()
    by_model: dict[str, int] = defaultdict(int)
    names = {card["digest"]: name for name, card in cards.items()}
    for digest, row_calls in waiting.items():
        by_model[names.get(digest, "replaced")] += row_calls
    found.jobs_waiting.set(jobs)
    live = await store.live_workers()
    for name in {*cards, *by_model}:
        found.row_calls_waiting.labels(name).set(by_model[name])
        found.workers.labels(name).set(live.get(name, 0))
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)

"""`/healthz`: the process answers. `/readyz`: it can also serve."""

from http import HTTPStatus

from fastapi import APIRouter

from service.api.dependencies import StoreDep
from service.api.problems import Problem
from service.api.schemas import Health, problem_responses
from service.jobs.errors import StoreError

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model_exclude_none=True)
async def healthz() -> Health:
    """Answer 200 as long as the process does."""
    return Health()


@router.get("/readyz", responses=problem_responses(s503="Not ready; says why"))
async def readyz(store: StoreDep) -> Health:
    """Answer 200 if the job store answers and a live worker serves at least one model."""
    try:
        await store.ping()
        cards, live = await store.models(), await store.live_models()
    except StoreError as error:
        raise _not_ready("the job store does not answer", {}) from error
    models = {name: name in live for name in cards}
    if not any(models.values()):
        raise _not_ready("no live worker serves a model; start one with `fokker worker`", models)
    return Health(models=models)


def _not_ready(detail: str, models: dict[str, bool]) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, extra={"models": models})

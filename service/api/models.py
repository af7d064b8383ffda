"""`/models`: the cards of the models, from a registry that outlives the workers."""

from fastapi import APIRouter

from service.api.dependencies import OwnerDep, StoreDep
from service.api.problems import did_you_mean, not_found
from service.api.schemas import Models, ModelView, problem_responses

REFUSED = {"s401": "No or an unknown API key", "s503": "The job store is away"}

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses=problem_responses(**REFUSED))
async def models(owner: OwnerDep, store: StoreDep) -> Models:
    """List every model, and whether a live worker serves it."""
    cards, live = await store.models(), await store.live_models()
    views = [ModelView(**card, live=name in live) for name, card in cards.items()]
    return Models(models=views)


@router.get(
    "/{name}",
    responses=problem_responses(s404="No such model", **REFUSED),
)
async def model(name: str, owner: OwnerDep, store: StoreDep) -> ModelView:
    """Give one model's card."""
    cards = await store.models()
    if name not in cards:
        known = did_you_mean(name, cards) if cards else "no worker has announced a model yet"
        raise not_found(f'no model "{name}"; {known}')
    return ModelView(**cards[name], live=name in await store.live_models())

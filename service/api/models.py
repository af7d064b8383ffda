"""`/models`: the cards of the models, from a registry that outlives the workers."""

from fastapi import APIRouter

from service.api.cards import failures, why_none
from service.api.dependencies import OwnerDep, StoreDep
from service.api.problems import not_found
from service.api.schemas import REFUSED, FailedModel, Models, ModelView, problem_responses

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses=problem_responses(**REFUSED))
async def models(owner: OwnerDep, store: StoreDep) -> Models:
    """List every model, and whether a live worker serves it."""
    cards, live = await store.models(), await store.live_models()
    views = [ModelView(**card, live=name in live) for name, card in cards.items()]
    failed = [
        FailedModel(name=name, reason=reason)
        for name, reason in sorted((await failures(store)).items())
    ]
    return Models(models=views, failed=failed)


@router.get(
    "/{name}",
    responses=problem_responses(s404="No such model", **REFUSED),
)
async def model(name: str, owner: OwnerDep, store: StoreDep) -> ModelView:
    """Give one model's card."""
    cards = await store.models()
    if name not in cards:
        raise not_found(f'no model "{name}"; {await why_none(store, name, cards)}')
    return ModelView(**cards[name], live=name in await store.live_models())

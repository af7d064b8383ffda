"""What requests are checked against, of the cards that workers announced."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from service.api.problems import did_you_mean
from service.jobs.store import JobStore

KEPT = 1.0
"""Seconds that cards are used without a look; a name that is not among them is looked for anew."""


class Times(BaseModel):
    """Of a model's process: its data are at t_min, its noise at t_max."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    t_min: float
    t_max: float


class Card(BaseModel):
    """A model's card, as far as requests need it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    digest: str
    shape: tuple[int, int, int]  # (C, H, W)
    levels: int
    process: Times
    class_names: list[str] | None = None


async def read_cards(store: JobStore) -> dict[str, Card]:
    """The card of every model that a worker ever announced, by name."""
    return {name: Card.model_validate(card) for name, card in (await store.models()).items()}


async def failures(store: JobStore) -> dict[str, str]:
    """The names of the models that live workers have and cannot serve, and why."""
    return {name: why for beat in await store.beats() for name, why in beat.failed.items()}


async def why_none(store: JobStore, name: str, known: Iterable[str]) -> str:
    """Why there is no model of a name, and which there are."""
    known, failed = list(known), await failures(store)
    if name in failed:
        return f"its checkpoint cannot be served: {failed[name]}"
    return did_you_mean(name, known) if known else "no worker has announced a model yet"

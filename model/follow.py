"""Following a Plan: rows of any Plans advance together, one network call and one update a tick.

A row's next update needs its matrix of the Plan, the noise of that call, and the scale and log-SNR
to ask at. They are laid out for some calls ahead, since noise for many calls at once costs little
more than for one; it is keyed by (seed, call), so that how far ahead it was drawn does not show.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.noise import Stream, normal
from model.plan import H, Plan, X, Y
from model.prediction import eps_from_x0, x0_from_eps
from model.query import (
    CPU,
    Answer,
    Asked,
    Condition,
    Course,
    Operation,
    Part,
    Query,
    Store,
)
from model.slots import Slots

_AHEAD_VALUES = 1 << 16
_MOST_AHEAD = 32


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Clips x̂0 to [low, high] before every update, as Ho et al. 2020 do for images."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Final:
    """Registers after the last call, ``(rows, C, H, W)`` float64: the sample and the history."""

    x: Tensor
    h: Tensor


@dataclass(frozen=True, kw_only=True)
class Follow(Course[Final]):
    """Follow a Plan from x ``(rows, C, H, W)`` float64 at its start.

    seeds ``(rows,)`` int64 key the noise of call i as (seed, STEP, i). h is the history to start
    with, zero if left out.
    """

    plan: Plan
    x: Tensor
    seeds: Tensor
    condition: Condition
    h: Tensor | None = None
    clip: Clip | None = None
    reproducible: bool = False

    @property
    def store_key(self) -> Hashable:
        """Plans of one image shape live together."""
        return Follow, self.x.shape[1:]

    def new_store(self, device: torch.device) -> FollowingRows:
        """See `Course`."""
        return FollowingRows(self.x.shape[1:], device)

    def join(self, results: Sequence[Final]) -> Final:
        """See `Course`."""
        return Final(
            x=torch.cat([result.x for result in results]).to(CPU),
            h=torch.cat([result.h for result in results]).to(CPU),
        )


def replay(
    plan: Plan,
    x: Tensor,
    seeds: Tensor,
    condition: Condition,
    *,
    h: Tensor | None = None,
    clip: Clip | None = None,
    reproducible: bool = False,
) -> Operation[Final]:
    """Follow a Plan, as an operation: see `Follow`."""
    final: Final = yield Follow(
        plan=plan, x=x, seeds=seeds, condition=condition, h=h, clip=clip, reproducible=reproducible
    )
    return final


@dataclass(eq=False, kw_only=True)
class _Following(Part):
    """slots: where its rows are, on the device; script: its Plan, a row a call, there too.

    ahead: the call that is laid out first.
    """

    course: Follow
    slots: Tensor
    seeds: Tensor
    script: Tensor  # (calls, 17): the matrix, the scale, the log-SNR
    length: int
    ahead: int

    @property
    def calls_left(self) -> float:
        return float(self.length - self.calls)


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """What is the same as long as the same parts are asked."""

    parts: tuple[_Following, ...]
    slots: Tensor
    condition: Condition
    counts: Tensor  # rows of each part
    noisy: bool
    clip: tuple[Tensor, Tensor, Tensor] | None  # which rows; low and high, (rows, 1)


class FollowingRows(Store[_Following]):
    """Registers x, h, y of rows of one image shape; see `Store`."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self._shape = tuple(shape)
        self._elements = int(torch.Size(shape).numel())
        self._reach = max(2, min(_MOST_AHEAD, _AHEAD_VALUES // self._elements))
        self._rows = Slots(device)
        self._rows.add("registers", 3, self._elements)
        self._rows.add("script", self._reach, 17)
        self._rows.add("noise", self._reach, self._elements)
        self._selection: _Selection | None = None

    def admit(self, course: Follow, rows: slice) -> _Following:
        """See `Store`."""
        device = self._rows.device
        x = course.x[rows].to(device).flatten(1)
        slots = self._rows.take(len(x))
        registers = self._rows["registers"]
        registers[slots, X] = x
        registers[slots, Y] = x
        if course.h is not None:
            registers[slots, H] = course.h[rows].to(device).flatten(1)
        return _Following(
            images=torch.arange(course.rows)[rows],
            condition=course.condition.take(rows).to(device),
            course=course,
            slots=slots,
            seeds=course.seeds[rows].to(device),
            script=course.plan.script.to(device),
            length=course.plan.calls,
            ahead=-self._reach,
        )

    def ask(self, parts: Sequence[_Following]) -> Asked[_Following]:
        """See `Store`."""
        selection = self._select(parts)
        self._look_ahead(parts)
        reach = self._reach
        now = torch.tensor([part.calls - part.ahead for part in parts]).repeat_interleave(
            selection.counts
        )
        place = selection.slots * reach + now.to(selection.slots.device)
        script = self._rows["script"].flatten(0, 1)[place]
        y = self._rows["registers"][selection.slots, Y]
        query = Query(
            u=(y / script[:, 15:16]).reshape(-1, *self._shape),
            log_snr=script[:, 16],
            condition=selection.condition,
            reproducible=parts[0].course.reproducible,
        )
        return Asked(parts=parts, query=query, context=(selection, place, script))

    def tell(self, asked: Asked[_Following], answer: Answer) -> None:
        """See `Store`."""
        selection, place, script = asked.context
        eps = answer.eps.flatten(1)
        if selection.clip is not None:
            eps = _clipped(asked.query, eps, *selection.clip)
        old = self._rows["registers"][selection.slots]
        z = self._rows["noise"].flatten(0, 1)[place] if selection.noisy else torch.zeros_like(eps)
        old = torch.cat((old, eps[:, None], z[:, None]), dim=1)  # (rows, 5, elements)
        table = script[:, :15].reshape(-1, 3, 5, 1)
        # Not a matrix product, whose rounding depends on how many rows there are.
        self._rows["registers"][selection.slots] = (table * old[:, None]).sum(2)
        for part in asked.parts:
            part.calls += 1
            part.progress = part.calls / part.length
            part.done = part.calls == part.length

    def result(self, part: _Following) -> Final:
        """See `Store`."""
        x, h = self._rows["registers"][part.slots, :2].reshape(-1, 2, *self._shape).unbind(1)
        return Final(x=x, h=h)

    def free(self, part: _Following) -> None:
        """See `Store`."""
        self._rows.give_back(part.slots)

    def _select(self, parts: Sequence[_Following]) -> _Selection:
        if self._selection is None or self._selection.parts != tuple(parts):
            counts = torch.tensor([part.rows for part in parts])
            self._selection = _Selection(
                parts=tuple(parts),
                slots=torch.cat([part.slots for part in parts]),
                condition=Condition.cat([part.condition for part in parts]),
                counts=counts,
                noisy=any(part.course.plan.noisy for part in parts),
                clip=_clips(parts, counts, self._rows.device),
            )
        return self._selection

    def _look_ahead(self, parts: Sequence[_Following]) -> None:
        """Lay out the calls to come of every part that has used up more than half of its own."""
        reach = self._reach
        if all(part.calls < part.ahead + reach for part in parts):
            return
        some = [part for part in parts if part.calls >= part.ahead + reach // 2]
        for part in some:
            script = part.script[part.calls : part.calls + reach]
            self._rows["script"][part.slots, : len(script)] = script
        self._draw([part for part in some if part.course.plan.noisy])
        for part in some:  # last, so that a failure to draw leaves nothing half laid out
            part.ahead = part.calls

    def _draw(self, some: Sequence[_Following]) -> None:
        """The noise of the calls to come."""
        if not some:
            return
        reach = self._reach
        seeds = torch.cat([part.seeds for part in some])
        first = torch.cat([torch.full_like(part.seeds, part.calls) for part in some])
        calls = first[:, None] + torch.arange(reach, device=first.device)
        noise = normal(
            seeds.repeat_interleave(reach), Stream.STEP, calls.flatten(), (self._elements,)
        )
        slots = torch.cat([part.slots for part in some])
        self._rows["noise"][slots] = noise.reshape(len(slots), reach, -1)


def _clips(
    parts: Sequence[_Following], counts: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor] | None:
    clips = [part.course.clip for part in parts]
    if not any(clips):
        return None
    bounds = torch.tensor(
        [(0.0, 0.0, 0.0) if clip is None else (1.0, clip.low, clip.high) for clip in clips],
        dtype=torch.float64,
    ).repeat_interleave(counts, dim=0)
    wanted, low, high = bounds.to(device)[:, :, None].unbind(1)
    return wanted > 0, low, high


def _clipped(query: Query, eps: Tensor, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The ε that belongs to the clipped x̂0, for the rows that want it."""
    u = query.u.flatten(1)
    x0 = x0_from_eps(u, eps, query.log_snr)
    return torch.where(wanted, eps_from_x0(u, x0.clamp(low, high), query.log_snr), eps)

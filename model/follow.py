"""Following a Plan: rows of any Plans advance together, one network call and one update a tick.

A row's next update needs its line of the Plan's script and the noise of that call. Noise is drawn
for many calls at once, which costs little more than for one; it is keyed by (seed, call), so that
how far ahead it was drawn does not show.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.noise import Stream, normal
from model.plan import COS, LOG_SNR, SCALE, SIN, TABLE, H, Plan, X, Y
from model.prediction import eps_of_clipped_x0
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

_MOST_VALUES, _MOST_CALLS = 1 << 15, 16
"""Of a row's noise that is drawn at once."""


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
    """Rows that follow one Plan together.

    slots, places: of its rows in the store, on its device and as numbers; script: the Plan's, on
    the CPU. drawn: calls whose noise has been drawn; all, where the Plan needs none.
    """

    course: Follow
    slots: Tensor
    places: list[int]
    seeds: Tensor
    script: NDArray[np.float64]
    drawn: int

    @property
    def calls_left(self) -> float:
        return float(len(self.script) - self.calls)


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """What is the same as long as the same parts are asked."""

    parts: Sequence[_Following]
    slots: Tensor
    condition: Condition
    noisy: bool
    clip: tuple[Tensor, Tensor, Tensor] | None  # (rows, 1): whether, low and high


class FollowingRows(Store[_Following]):
    """Registers x, h, y of rows of one image shape; see `Store`."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self._shape = tuple(shape)
        self._elements = int(torch.Size(shape).numel())
        self._block = max(1, min(_MOST_CALLS, _MOST_VALUES // self._elements))
        self._rows = Slots(device)
        self._rows.add("registers", 3, self._elements)
        self._rows.add("label", dtype=torch.int64)
        self._rows.add("guidance")
        self._rows.add("clip", 3)
        # Of the block of calls that a row is in, and of the one before or after it.
        self._rows.add("noise", 2, self._block, self._elements)
        self._selection: _Selection | None = None

    def admit(self, course: Follow, rows: slice) -> _Following:
        """See `Store`."""
        device = self._rows.device
        x = course.x[rows].to(device).flatten(1)
        condition = course.condition.take(rows).to(device)
        slots = self._rows.take(len(x))
        registers = self._rows["registers"]
        registers[slots, X] = x
        registers[slots, Y] = x
        if course.h is not None:
            registers[slots, H] = course.h[rows].to(device).flatten(1)
        self._rows["label"][slots] = condition.label
        self._rows["guidance"][slots] = condition.guidance
        if course.clip is not None:
            clip = (1.0, course.clip.low, course.clip.high)
            self._rows["clip"][slots] = torch.tensor(clip, dtype=torch.float64, device=device)
        return _Following(
            images=torch.arange(course.rows)[rows],
            condition=condition,
            course=course,
            slots=slots,
            places=slots.tolist(),
            seeds=course.seeds[rows].to(device),
            script=course.plan.script.numpy(),
            drawn=0 if course.plan.noisy else course.plan.calls,
        )

    def ask(self, parts: Sequence[_Following]) -> Asked[_Following]:
        """See `Store`."""
        selection = self._select(parts)
        self._draw_ahead(parts)
        noise = self._noise(parts) if selection.noisy else None
        lines = [part.script[part.calls] for part in parts for _ in part.places]
        script = torch.from_numpy(np.array(lines)).to(self._rows.device)
        registers = self._rows["registers"].index_select(0, selection.slots).unbind(1)
        query = Query(
            u=(registers[Y] / script[:, SCALE : SCALE + 1]).reshape(-1, *self._shape),
            log_snr=script[:, LOG_SNR],
            condition=selection.condition,
            reproducible=parts[0].course.reproducible,
        )
        return Asked(parts=parts, query=query, context=(selection, script, registers, noise))

    def tell(self, asked: Asked[_Following], answer: Answer) -> None:
        """See `Store`."""
        selection, script, registers, noise = asked.context
        eps = answer.eps.flatten(1)
        if selection.clip is not None:
            wanted, low, high = selection.clip
            cos, sin = script[:, COS : COS + 1], script[:, SIN : SIN + 1]
            clipped = eps_of_clipped_x0(asked.query.u.flatten(1), eps, cos, sin, low, high)
            eps = torch.where(wanted, clipped, eps)
        # Neither a matrix product, whose rounding depends on how many rows there are, nor fused
        # operations, which are fused in some places and not in others on some processors.
        table = script[:, TABLE].reshape(-1, 3, 5, 1).unbind(2)
        new = torch.zeros_like(table[0])
        for coefficients, register in zip(table, (*registers, eps, noise), strict=True):
            if register is not None:
                new = new + coefficients * register[:, None]
        self._rows["registers"].index_copy_(0, selection.slots, new)
        for part in asked.parts:
            part.calls += 1
            part.progress = part.calls / len(part.script)
            part.done = part.calls == len(part.script)

    def result(self, part: _Following) -> Final:
        """See `Store`."""
        x, h = self._rows["registers"][part.slots, :2].reshape(-1, 2, *self._shape).unbind(1)
        return Final(x=x, h=h)

    def free(self, part: _Following) -> None:
        """See `Store`."""
        self._rows.give_back(part.slots)

    def _select(self, parts: Sequence[_Following]) -> _Selection:
        if self._selection is None or self._selection.parts != list(parts):
            places = [place for part in parts for place in part.places]
            slots = torch.tensor(places, device=self._rows.device)
            self._selection = _Selection(
                parts=list(parts),
                slots=slots,
                condition=Condition(
                    label=self._rows["label"].index_select(0, slots),
                    guidance=self._rows["guidance"].index_select(0, slots),
                ),
                noisy=any(part.course.plan.noisy for part in parts),
                clip=self._clips(slots) if any(part.course.clip for part in parts) else None,
            )
        return self._selection

    def _clips(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        clips, low, high = self._rows["clip"].index_select(0, slots)[:, :, None].unbind(1)
        return clips > 0.0, low, high

    def _noise(self, parts: Sequence[_Following]) -> Tensor:
        """What has been drawn for this call of each row, ``(rows, elements)``."""
        noise = self._rows["noise"].flatten(0, 2)
        ring = 2 * self._block
        at = [place * ring + part.calls % ring for part in parts for place in part.places]
        return noise.index_select(0, torch.tensor(at, device=noise.device))

    def _draw_ahead(self, parts: Sequence[_Following]) -> None:
        """Where a part has none left: a block more of noise, for all that want it and have room."""
        if all(part.calls < part.drawn for part in parts):
            return
        block = self._block
        some = [
            part
            for part in parts
            if part.drawn < len(part.script) and part.drawn - part.calls <= block
        ]
        seeds = torch.cat([part.seeds for part in some])
        slots = torch.cat([part.slots for part in some])
        drawn = [part.drawn for part in some for _ in part.places]
        first = torch.tensor(drawn, device=seeds.device)
        calls = first[:, None] + torch.arange(block, device=first.device)
        noise = normal(
            seeds.repeat_interleave(block), Stream.STEP, calls.flatten(), (self._elements,)
        )
        self._rows["noise"][slots, first // block % 2] = noise.reshape(len(slots), block, -1)
        for part in some:  # last, so that a failure to draw leaves nothing half drawn
            part.drawn += block

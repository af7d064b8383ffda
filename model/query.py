"""Operations ask, a denoiser answers.

Sampling, encoding and likelihood are generators. They yield what they want of the network and are
sent what came of it. What they yield is a *course*: rows that need one network call (a `Query`)
or many (a Plan to follow, an ODE to integrate), with nothing to decide on the way.

Rows on their way live in a `Store`, which advances rows of many courses at once: it says what
they ask next as one query, and takes its answer as one update. Whoever drives the operations
decides what runs together: `run` drives one alone, the worker's engine those of all its jobs. An
operation never sees the network, so it can neither depend on what it was batched with nor on the
device that it ran on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

UNCONDITIONAL = -1
"""The label of a row that has no class."""

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What each image is asked for, ``(rows,)`` each: int64 label, float64 guidance weight.

    Classifier-free guidance (Ho & Salimans 2022): ε = ε(∅) + w (ε(label) − ε(∅)); w = 1 is the
    conditional model itself.
    """

    label: Tensor
    guidance: Tensor

    @classmethod
    def same(cls, rows: int, label: int | None = None, guidance: float = 1.0) -> Condition:
        """The same condition for all rows; no label means unconditional."""
        return cls(
            label=torch.full((rows,), UNCONDITIONAL if label is None else label),
            guidance=torch.full((rows,), guidance, dtype=torch.float64),
        )

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """The conditions of several sets of rows, one after another."""
        if len(conditions) == 1:
            return conditions[0]
        return cls(
            label=torch.cat([condition.label for condition in conditions]),
            guidance=torch.cat([condition.guidance for condition in conditions]),
        )

    def take(self, rows: Tensor | slice) -> Condition:
        """The condition of these rows."""
        return Condition(label=self.label[rows], guidance=self.guidance[rows])

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        return Condition(label=self.label.to(device), guidance=self.guidance.to(device))

    @cached_property
    def guided(self) -> Tensor:
        """The rows that need the unconditional ε as well, int64; each costs two network rows."""
        wanted = (self.guidance != 1.0) & (self.label != UNCONDITIONAL)
        return wanted.nonzero().squeeze(1)


class Course(ABC, Generic[Result]):
    """Rows that want the network, one or many times; its results come row by row.

    condition: of each row. reproducible: an answer must not depend on the other rows, to the bit.
    """

    condition: Condition
    reproducible: bool

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.condition.label)

    @property
    def divergence(self) -> Hashable:
        """What it asks besides ε: courses of equal divergence may share network calls."""
        return None

    @property
    @abstractmethod
    def store_key(self) -> Hashable:
        """Courses of equal keys fit into one store."""

    @abstractmethod
    def new_store(self, device: torch.device) -> Store[Any]:
        """An empty store for courses like this one."""

    @abstractmethod
    def join(self, results: Sequence[Result]) -> Result:
        """The result of the whole from those of its parts, in order; on the CPU."""


@dataclass(eq=False, kw_only=True)
class Part:
    """Some rows of one course, on their way through a store together.

    images: which of the course's rows still ask, int64 on the CPU; condition: of these rows.
    rows: how many they are; network_rows: how many a network call has for them, since guidance
    doubles a row.
    calls: network calls made; progress: how far it has come, 0 … 1. done: nothing left to ask.
    """

    images: Tensor
    condition: Condition
    calls: int = 0
    progress: float = 0.0
    done: bool = False
    rows: int = field(init=False)
    network_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.recount()

    def recount(self) -> None:
        """Set the counts, when images and condition have changed."""
        self.rows = len(self.images)
        self.network_rows = self.rows + len(self.condition.guided)

    @property
    def calls_left(self) -> float:
        """An estimate of the calls still to come."""
        return self.calls * (1.0 / self.progress - 1.0) if self.progress > 0.0 else 100.0


APart = TypeVar("APart", bound=Part)


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[APart]):
    """What some parts of a store ask: the query has their rows in order."""

    parts: Sequence[APart]
    query: Query
    context: Any = None


class Store(ABC, Generic[APart]):
    """Rows of many courses on one device."""

    @abstractmethod
    def admit(self, course: Any, rows: slice) -> APart:
        """Take these rows of a course in."""

    @abstractmethod
    def ask(self, parts: Sequence[APart]) -> Asked[APart]:
        """What these parts want to know next."""

    @abstractmethod
    def tell(self, asked: Asked[APart], answer: Answer) -> None:
        """Advance the parts by the answer to what they asked."""

    @abstractmethod
    def result(self, part: APart) -> Any:
        """What became of a part that is done, on the store's device."""

    @abstractmethod
    def free(self, part: APart) -> None:
        """Let a part go, done or not."""


@dataclass(frozen=True, kw_only=True)
class Query(Course["Answer"]):
    """Rows at which an operation wants ε, and perhaps the divergence of ε, once.

    u: standardised states x / sqrt(α² + σ²), float64 ``(rows, C, H, W)``.
    log_snr: float64 ``(rows,)``.
    probes: vectors p, ``(rows, K, C, H, W)``: asks for the products pᵀ ∂ε/∂u; None for none.
    exact_trace: asks for the trace of ∂ε/∂u itself.
    reproducible: the denoiser uses one fixed, padded batch size, since a network's float32 output
        differs by about 1e-6 between batch sizes.
    progress: how far the operation has come, 0 … 1. calls_left: how often it is going to ask, this
        query included.
    """

    u: Tensor
    log_snr: Tensor
    condition: Condition
    probes: Tensor | None = None
    exact_trace: bool = False
    reproducible: bool = False
    progress: float = 0.0
    calls_left: float = 1.0

    @property
    def divergence(self) -> Hashable:
        """The exact trace, or the number of probes."""
        return "exact" if self.exact_trace else None if self.probes is None else len(self.probes[0])

    def take(self, rows: slice) -> Query:
        """The query for these rows alone."""
        return replace(
            self,
            u=self.u[rows],
            log_snr=self.log_snr[rows],
            condition=self.condition.take(rows),
            probes=None if self.probes is None else self.probes[rows],
        )

    def to(self, device: torch.device) -> Query:
        """The same on a device."""
        if self.u.device == device:
            return self
        return replace(
            self,
            u=self.u.to(device),
            log_snr=self.log_snr.to(device),
            condition=self.condition.to(device),
            probes=None if self.probes is None else self.probes.to(device),
        )

    @property
    def store_key(self) -> Hashable:
        """All single queries."""
        return Query

    def new_store(self, device: torch.device) -> Store[Any]:
        """See `Course`."""
        return _Queries(device)

    def join(self, results: Sequence[Answer]) -> Answer:
        """See `Course`."""
        return cat_answers(results).to(CPU)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """eps: float64 ``(rows, C, H, W)``; what else the query asked for.

    products: pᵀ ∂ε/∂u, ``(rows, K, C, H, W)``. trace: tr ∂ε/∂u, ``(rows,)``.
    """

    eps: Tensor
    products: Tensor | None = None
    trace: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Answer:
        """A function of each of its tensors."""
        return Answer(
            eps=function(self.eps),
            products=None if self.products is None else function(self.products),
            trace=None if self.trace is None else function(self.trace),
        )

    def take(self, rows: slice) -> Answer:
        """The answer for these rows."""
        return self.map(lambda values: values[rows])

    def to(self, device: torch.device) -> Answer:
        """The same on a device."""
        return self.map(lambda values: values.to(device))


def cat_queries(queries: Sequence[Query]) -> Query:
    """One query with the rows of all, in order; all of the same kind."""
    first = queries[0]
    if len(queries) == 1:
        return first
    probes = [query.probes for query in queries if query.probes is not None]
    return replace(
        first,
        u=torch.cat([query.u for query in queries]),
        log_snr=torch.cat([query.log_snr for query in queries]),
        condition=Condition.cat([query.condition for query in queries]),
        probes=torch.cat(probes) if probes else None,
    )


def cat_answers(answers: Sequence[Answer]) -> Answer:
    """The answers for several sets of rows, one after another."""
    if len(answers) == 1:
        return answers[0]
    products = [answer.products for answer in answers if answer.products is not None]
    traces = [answer.trace for answer in answers if answer.trace is not None]
    return Answer(
        eps=torch.cat([answer.eps for answer in answers]),
        products=torch.cat(products) if products else None,
        trace=torch.cat(traces) if traces else None,
    )


@dataclass(eq=False, kw_only=True)
class _Asking(Part):
    query: Query
    answer: Answer | None = None

    @property
    def calls_left(self) -> float:
        return self.query.calls_left


class _Queries(Store[_Asking]):
    """Rows that ask once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def admit(self, course: Query, rows: slice) -> _Asking:
        query = course.take(rows).to(self._device)
        images = torch.arange(course.rows)[rows]
        return _Asking(
            images=images, condition=query.condition, query=query, progress=course.progress
        )

    def ask(self, parts: Sequence[_Asking]) -> Asked[_Asking]:
        return Asked(parts=parts, query=cat_queries([part.query for part in parts]))

    def tell(self, asked: Asked[_Asking], answer: Answer) -> None:
        first = 0
        for part in asked.parts:
            last = first + part.rows
            part.answer, part.done, part.calls = answer.take(slice(first, last)), True, 1
            first = last

    def result(self, part: _Asking) -> Answer:
        assert part.answer is not None
        return part.answer

    def free(self, part: _Asking) -> None:
        part.answer = None


Operation: TypeAlias = Generator[Course[Any], Any, Result]
"""Yields courses, and is sent the result of each."""


def run(
    operation: Operation[Result],
    evaluate: Callable[[Query], Answer],
    watch: Callable[[Query, Answer], None] | None = None,
) -> Result:
    """Drive one operation alone to its result; ``watch`` sees every query with its answer."""
    try:
        course = next(operation)
        while True:
            course = operation.send(_travel(course, evaluate, watch))
    except StopIteration as stop:
        result: Result = stop.value
        return result


def _travel(
    course: Course[Result],
    evaluate: Callable[[Query], Answer],
    watch: Callable[[Query, Answer], None] | None,
) -> Result:
    """Take all rows of a course to their end."""
    store = course.new_store(CPU)
    part = store.admit(course, slice(0, course.rows))
    while not part.done:
        asked = store.ask([part])
        answer = evaluate(asked.query)
        if watch is not None:
            watch(asked.query, answer)
        store.tell(asked, answer)
    return course.join([store.result(part)])

"""Operations ask, a denoiser answers.

Sampling, encoding and likelihood are generators: they yield a `Query` (rows to ask the network
at) and are sent its `Answer`. Whoever drives them decides what runs together: `run` drives one
alone, the worker's engine merges the queries of all its jobs into one network call a tick. An
operation never sees the network, so it can neither depend on what it was batched with nor on the
device that it ran on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

UNCONDITIONAL = -1
"""The label of a row that has no class."""


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

    def take(self, rows: Tensor) -> Condition:
        """The condition of these rows."""
        return Condition(label=self.label[rows], guidance=self.guidance[rows])


@dataclass(frozen=True, kw_only=True)
class Query:
    """Rows at which an operation wants ε, and perhaps the divergence of ε.

    u: standardised states x / sqrt(α² + σ²), float64 ``(rows, C, H, W)``.
    log_snr: float64 ``(rows,)``.
    image: which of the operation's images a row belongs to, int64 ``(rows,)``.
    probes: vectors p, ``(rows, K, C, H, W)``: asks for the products pᵀ ∂ε/∂u; None for none.
    exact_trace: asks for the trace of ∂ε/∂u itself.
    reproducible: the answer must not depend on the other rows, to the bit. The denoiser then
        uses one fixed, padded batch size, since a network's float32 output differs by about 1e-6
        between batch sizes.
    progress: how far the operation has come, 0 … 1.
    """

    u: Tensor
    log_snr: Tensor
    condition: Condition
    image: Tensor
    probes: Tensor | None = None
    exact_trace: bool = False
    reproducible: bool = False
    progress: float = 0.0

    @property
    def needs_gradient(self) -> bool:
        """Whether the network's Jacobian is asked for."""
        return self.exact_trace or self.probes is not None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """eps: float64 ``(rows, C, H, W)``; what else the query asked for.

    products: pᵀ ∂ε/∂u, ``(rows, K, C, H, W)``. trace: tr ∂ε/∂u, ``(rows,)``.
    """

    eps: Tensor
    products: Tensor | None = None
    trace: Tensor | None = None


Operation: TypeAlias = Generator[Query, Answer, Result]


def run(
    operation: Operation[Result],
    evaluate: Callable[[Query], Answer],
    watch: Callable[[Query, Answer], None] | None = None,
) -> Result:
    """Drive one operation alone to its result; ``watch`` sees every query with its answer."""
    try:
        query = next(operation)
        while True:
            answer = evaluate(query)
            if watch is not None:
                watch(query, answer)
            query = operation.send(answer)
    except StopIteration as stop:
        result: Result = stop.value
        return result

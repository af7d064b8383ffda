"""A network with all that stands between it and an operation's query.

Conversions of the prediction to ε, classifier-free guidance, the divergence, and the fixed batch
size of rows that must be reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn

from model.analytic import GaussianMixture
from model.prediction import TO_EPS
from model.query import UNCONDITIONAL, Answer, Query

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps (u (rows, C, H, W), log_snr (rows,), label (rows,) int64) to its prediction, shaped as u.

It is asked in its own dtype; label −1 is the unconditional model.
"""

REPRODUCIBLE_ROWS = 16
"""The one batch size of rows whose answer must not depend on the others."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Answers queries with a network.

    prediction: what the network predicts, a name in `model.prediction.TO_EPS`.
    dtype, device: the network's own. Answers are float64 on the query's device.
    """

    network: nn.Module
    prediction: str
    dtype: torch.dtype
    device: torch.device

    def __call__(self, query: Query) -> Answer:
        """The answer to a query; rows with guidance cost two."""
        label, weight = query.condition.label, query.condition.guidance
        guided = ((weight != 1.0) & (label != UNCONDITIONAL)).nonzero().squeeze(1)
        rows = torch.cat((torch.arange(len(label)), guided))
        labels = torch.cat((label, torch.full_like(guided, UNCONDITIONAL)))
        answer = self._rows(query, rows, labels)
        return (
            _map(answer, lambda values: _guide(values, guided, weight)) if len(guided) else answer
        )

    def _rows(self, query: Query, rows: Tensor, labels: Tensor) -> Answer:
        """The answer for these rows of the query, in calls of a fixed size where asked."""
        if not query.reproducible:
            return self._call(query, rows, labels)
        parts = []
        for start in range(0, len(rows), REPRODUCIBLE_ROWS):
            some = rows[start : start + REPRODUCIBLE_ROWS]
            padding = REPRODUCIBLE_ROWS - len(some)
            answer = self._call(
                query,
                torch.cat((some, some[:1].expand(padding))),
                torch.cat((labels[start : start + len(some)], labels[:1].expand(padding))),
            )
            parts.append(_map(answer, itemgetter(slice(len(some)))))
        return Answer(
            eps=torch.cat([part.eps for part in parts]),
            products=_joined([part.products for part in parts]),
            trace=_joined([part.trace for part in parts]),
        )

    def _call(self, query: Query, rows: Tensor, labels: Tensor) -> Answer:
        """One network call."""
        u, log_snr = query.u[rows].to(self.device), query.log_snr[rows].to(self.device)
        labels = labels.to(self.device)
        home = query.u.device
        if not query.needs_gradient:
            with torch.no_grad():
                return Answer(eps=self._eps(u, log_snr, labels).to(home))
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            eps = self._eps(u, log_snr, labels)
            probes = None if query.probes is None else query.probes[rows].to(self.device)
            products = None if probes is None else _products(eps, u, probes)
            trace = self._trace(eps, u, log_snr, labels) if query.exact_trace else None
        answer = Answer(eps=eps.detach(), products=products, trace=trace)
        return _map(answer, lambda values: values.to(home))

    def _trace(self, eps: Tensor, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """tr ∂ε/∂u: in closed form where the network has one, else by D products."""
        if isinstance(self.network, GaussianMixture):
            return self.network.eps_trace(u.detach(), log_snr, label)
        return _trace(eps, u)

    def _eps(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        out = self.network(u.to(self.dtype), log_snr.to(self.dtype), label)
        return TO_EPS[self.prediction](u, out.double(), log_snr)


def _map(answer: Answer, function: Callable[[Tensor], Tensor]) -> Answer:
    return Answer(
        eps=function(answer.eps),
        products=None if answer.products is None else function(answer.products),
        trace=None if answer.trace is None else function(answer.trace),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _guide(values: Tensor, guided: Tensor, weight: Tensor) -> Tensor:
    """ε(∅) + w (ε(label) − ε(∅)) for the guided rows, whose ε(∅) stand behind the others."""
    conditional, unconditional = values[: len(weight)], values[len(weight) :]
    w = weight[guided].reshape(-1, *[1] * (values.ndim - 1))
    mixed = unconditional + w * (conditional[guided] - unconditional)
    return conditional.index_copy(0, guided, mixed)


def _products(eps: Tensor, u: Tensor, probes: Tensor) -> Tensor:
    """pᵀ ∂ε/∂u for each probe: (rows, K, C, H, W). The graph of ε stays."""
    return torch.stack(
        [
            torch.autograd.grad(eps, u, probes[:, k], retain_graph=True)[0]
            for k in range(probes.shape[1])
        ],
        dim=1,
    )


def _trace(eps: Tensor, u: Tensor) -> Tensor:
    """tr ∂ε/∂u, one vector–Jacobian product a dimension: (rows,)."""
    flat = eps.flatten(1)
    total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
    for d in range(flat.shape[1]):
        (product,) = torch.autograd.grad(flat[:, d].sum(), u, retain_graph=True)
        total += product.flatten(1)[:, d]
    return total

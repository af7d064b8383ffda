"""A network with all that stands between it and an operation's query.

Conversions of the prediction to ε, classifier-free guidance, the divergence, and the fixed batch
size of rows that must be reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        eps, divergence = self._rows(query, rows, labels)
        return Answer(
            eps=_guide(eps, guided, weight),
            divergence=None if divergence is None else _guide(divergence, guided, weight),
        )

    def _rows(self, query: Query, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """ε and divergence of these rows of the query, in calls of a fixed size where asked."""
        if not query.reproducible:
            return self._call(query, rows, labels)
        parts = []
        for start in range(0, len(rows), REPRODUCIBLE_ROWS):
            some = rows[start : start + REPRODUCIBLE_ROWS]
            padding = REPRODUCIBLE_ROWS - len(some)
            eps, divergence = self._call(
                query,
                torch.cat((some, some[:1].expand(padding))),
                torch.cat((labels[start : start + len(some)], labels[:1].expand(padding))),
            )
            parts.append(
                (eps[: len(some)], None if divergence is None else divergence[: len(some)])
            )
        eps = torch.cat([eps for eps, _ in parts])
        found = [divergence for _, divergence in parts if divergence is not None]
        return eps, torch.cat(found) if found else None

    def _call(self, query: Query, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """One network call."""
        u, log_snr = query.u[rows].to(self.device), query.log_snr[rows].to(self.device)
        labels = labels.to(self.device)
        home = query.u.device
        if not query.needs_gradient:
            with torch.no_grad():
                return self._eps(u, log_snr, labels).to(home), None
        probes = None if query.probes is None else query.probes[rows].to(self.device)
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            eps = self._eps(u, log_snr, labels)
            divergence = _trace(eps, u) if probes is None else _quadratic_forms(eps, u, probes)
        return eps.detach().to(home), divergence.to(home)

    def _eps(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        out = self.network(u.to(self.dtype), log_snr.to(self.dtype), label)
        return TO_EPS[self.prediction](u, out.double(), log_snr)


def _guide(values: Tensor, guided: Tensor, weight: Tensor) -> Tensor:
    """ε(∅) + w (ε(label) − ε(∅)) for the guided rows, whose ε(∅) stand behind the others."""
    conditional, unconditional = values[: len(weight)], values[len(weight) :]
    if len(guided) == 0:
        return conditional
    w = weight[guided].reshape(-1, *[1] * (values.ndim - 1))
    mixed = unconditional + w * (conditional[guided] - unconditional)
    return conditional.index_copy(0, guided, mixed)


def _quadratic_forms(eps: Tensor, u: Tensor, probes: Tensor) -> Tensor:
    """pᵀ (∂ε/∂u) p for each probe: (rows, K)."""
    count = probes.shape[1]
    forms = []
    for k in range(count):
        (product,) = torch.autograd.grad(eps, u, probes[:, k], retain_graph=k < count - 1)
        forms.append((product * probes[:, k]).flatten(1).sum(1))
    return torch.stack(forms, dim=1)


def _trace(eps: Tensor, u: Tensor) -> Tensor:
    """tr ∂ε/∂u, one vector–Jacobian product a dimension: (rows, 1)."""
    flat = eps.flatten(1)
    total = torch.zeros(len(u), dtype=u.dtype, device=u.device)
    for d in range(flat.shape[1]):
        last = d == flat.shape[1] - 1
        (product,) = torch.autograd.grad(flat[:, d].sum(), u, retain_graph=not last)
        total += product.flatten(1)[:, d]
    return total[:, None]

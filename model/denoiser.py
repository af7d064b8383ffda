"""A network with all that stands between it and an operation's query.

Conversions of the prediction to ε, classifier-free guidance, the divergence, and the fixed batch
size of rows that must be reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.analytic import GaussianMixture
from model.cores import side_by_side
from model.prediction import TO_EPS
from model.query import UNCONDITIONAL, Answer, Query, cat_answers

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps (u (rows, C, H, W), log_snr (rows,), label (rows,) int64) to its prediction, shaped as u.

It is asked in its own dtype; label −1 is the unconditional model.
"""

_CPU_BUCKET, _GPU_BUCKET = 8, 16
"""The one batch size of rows whose answer must not depend on the others. On a CPU one core computes
it, whatever the others do: how many threads share an operation changes its last bits."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Answers queries with a network.

    prediction: what the network predicts, a name in `model.prediction.TO_EPS`.
    dtype, device: the network's own. Answers are float64 on the query's device.
    fast: the same network in lower precision, compiled or shared among cores, for rows that need
        neither gradients nor to be reproducible; the network itself if left out.
    """

    network: nn.Module
    prediction: str
    dtype: torch.dtype
    device: torch.device
    fast: nn.Module | None = None

    @property
    def bucket(self) -> int:
        """Rows of every network call for rows that must be reproducible."""
        return _CPU_BUCKET if self.device.type == "cpu" else _GPU_BUCKET

    @property
    def buckets_at_once(self) -> int:
        """How many such calls this thread makes side by side: one on every core that it may use."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def __call__(self, query: Query) -> Answer:
        """The answer to a query; rows with guidance cost two."""
        home = query.u.device
        rows = _Rows.of(query.to(self.device))
        if query.reproducible:
            buckets = rows.split(self.bucket)
            on_cores = side_by_side if self.device.type == "cpu" else map
            answer = cat_answers(list(on_cores(self._padded, buckets)))
        else:
            answer = self._call(rows, self.fast or self.network)
        condition = query.condition
        if len(condition.guided):
            answer = answer.map(lambda values: _guide(values, condition.guided, condition.guidance))
        return answer.to(home)

    def _padded(self, rows: _Rows) -> Answer:
        """The answer for a bucket's rows or fewer, from a call of exactly so many."""
        answer = self._call(rows.padded(self.bucket), self.network)
        return answer.take(slice(len(rows.u)))

    def _call(self, rows: _Rows, network: nn.Module) -> Answer:
        """One network call; with gradients always the network itself."""
        u, log_snr, label = rows.u, rows.log_snr, rows.label
        if rows.probes is None and not rows.exact_trace:
            with torch.no_grad():
                return Answer(eps=self._eps(network, u, log_snr, label))
        with torch.enable_grad():
            u = u.detach().requires_grad_(True)
            eps = self._eps(self.network, u, log_snr, label)
            products = None if rows.probes is None else _products(eps, u, rows.probes)
            trace = self._trace(eps, u, log_snr, label) if rows.exact_trace else None
        return Answer(eps=eps.detach(), products=products, trace=trace)

    def _trace(self, eps: Tensor, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """tr ∂ε/∂u: in closed form where the network has one, else by D products."""
        if isinstance(self.network, GaussianMixture):
            return self.network.eps_trace(u.detach(), log_snr, label)
        return _trace(eps, u)

    def _eps(self, network: nn.Module, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        out = network(u.to(self.dtype), log_snr.to(self.dtype), label)
        return TO_EPS[self.prediction](u, out.double(), log_snr)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of one network call; those for the unconditional part of guidance stand last."""

    u: Tensor
    log_snr: Tensor
    label: Tensor
    probes: Tensor | None
    exact_trace: bool

    @classmethod
    def of(cls, query: Query) -> _Rows:
        guided = query.condition.guided

        def twice(values: Tensor) -> Tensor:
            return torch.cat((values, values[guided])) if len(guided) else values

        label = query.condition.label
        nothing = torch.full_like(guided, UNCONDITIONAL)
        return cls(
            u=twice(query.u),
            log_snr=twice(query.log_snr),
            label=torch.cat((label, nothing)) if len(guided) else label,
            probes=None if query.probes is None else twice(query.probes),
            exact_trace=query.exact_trace,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> _Rows:
        return _Rows(
            u=function(self.u),
            log_snr=function(self.log_snr),
            label=function(self.label),
            probes=None if self.probes is None else function(self.probes),
            exact_trace=self.exact_trace,
        )

    def split(self, size: int) -> list[_Rows]:
        """Sets of at most ``size`` rows."""
        starts = range(0, len(self.u), size)
        return [self.map(lambda values, s=start: values[s : s + size]) for start in starts]  # type: ignore[misc]

    def padded(self, size: int) -> _Rows:
        """As many rows as ``size``, the last ones zeros."""
        missing = size - len(self.u)
        if missing == 0:
            return self
        return self.map(lambda values: F.pad(values, (0, 0) * (values.ndim - 1) + (0, missing)))


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

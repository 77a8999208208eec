"""Log-weights of a bound's particles, gathered from the terms of a run: what each datum has, and what is shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.bound_costs import BoundCosts, Datum, log_mean
from pyro_discrete.costs import NEVER, Costs, Order, Term
from pyro_discrete.doubly import DoublyValue, doubly_weighted
from pyro_discrete.programs.dims import Frames, Layout, plates_of, subsampling_scale
from pyro_discrete.programs.sites import padded

__all__ = ["Weighed", "common_scale"]


@dataclass
class Weighed:
    """The terms of a run under an importance-weighted bound.

    - `scale`: what multiplies the bound, and is divided out of the log-weights.
    - `log_weights` `[columns, S, K, *datum dims]`: differentiable, by the data's iterations of sequential plates, whose
      plates are in `frames`.
    - `data`: the iterations that each guide site belongs to, of those that each particle draws for itself.
    - `shared`: cost terms of what the K particles share, `[columns * S, *batch]`; `path`: their pathwise part.
    - `values`: of the sites that take the doubly reparameterised gradient.
    """

    layout: Layout
    batch_dims: int
    scale: float
    keep_graph: bool
    log_weights: dict[Datum, Tensor] = field(default_factory=dict)
    frames: dict[Datum, Frames] = field(default_factory=dict)
    data: dict[str, Datum] = field(default_factory=dict)
    shared: list[Term] = field(default_factory=list)
    path: Tensor | float = 0.0
    values: list[DoublyValue] = field(default_factory=list)

    def datum(self, plates: Frames) -> Datum:
        """The iterations of sequential plates by which a site's data are told apart."""
        return frozenset((p.name, p.counter) for p in plates if p.dim is None and p.name in self.layout.datum)

    def add(self, log_weight: Tensor, plates: Frames) -> None:
        """Take in a scaled term that each particle has for itself: log p, or minus log q."""
        value, datum = padded(log_weight, self.batch_dims), self.datum(plates)
        for frame in plates:
            if frame.dim is not None and frame.name not in self.layout.datum:
                value = value.sum(frame.dim, keepdim=True)
        value = value.expand(self.layout.size, *value.shape[1:])
        value = value.reshape(self.layout.columns, self.layout.particles, -1, *value.shape[1:])
        if self.scale != 1:
            value = value / self.scale
        known = self.log_weights.get(datum)
        self.log_weights[datum] = value if known is None else known + value
        self.frames[datum] = frozenset(p for p in plates if p.name in self.layout.datum)

    def add_shared(self, term: Term, path: Tensor | None) -> None:
        """Take in a scaled cost term of what the particles share, with its pathwise part if it has one."""
        cost = self.layout.once(term.plates, padded(term.value, self.batch_dims))
        self.shared.append(replace(term, value=cost if self.keep_graph else cost.detach()))
        if path is not None:
            path = self.layout.once(term.plates, padded(path, self.batch_dims))
            self.path = self.path + path[: self.layout.particles].sum()

    def loss(self) -> tuple[Tensor, Tensor]:
        """Minus the bound of the first column, summed over outer samples: differentiable, and its plain value."""
        bounds = torch.stack([log_mean(w[:1]).sum() for w in self.log_weights.values()])
        weighted = -self.scale * bounds.sum()
        value = weighted.detach() + sum((t.value.detach()[: self.layout.particles].sum() for t in self.shared), 0.0)
        if self.values:
            weighted = weighted + doubly_weighted(weighted, self.values, self.log_weights)
        return weighted + self.path, value

    def costs(self, order: Order) -> BoundCosts:
        """The cost behind each site; the bound is the last of the terms that the shared ones influence."""
        log_weights = {d: w if self.keep_graph else w.detach() for d, w in self.log_weights.items()}
        bounds = [
            Term(-self.scale * log_mean(w).flatten(0, 1), self.frames[d], False, NEVER - 1)
            for d, w in log_weights.items()
        ]
        all_move = [True] + [False] * (self.layout.columns - 1)
        for name, columns in self.layout.owned.items():
            for column in columns:
                all_move[column] = name not in self.data
        inside = {
            name for name in self.data if any(p.dim and p.name not in self.layout.datum for p in order.plates[name])
        }
        return BoundCosts(
            log_weights,
            BoundCosts.others_of(log_weights),
            self.data,
            Costs([*self.shared, *bounds], order),
            self.scale,
            next(iter(log_weights.values())).shape[2],
            frozenset(inside),
            all_move,
        )

    @staticmethod
    def join(parts: Sequence[Weighed]) -> Weighed:
        """The particles of separate runs of one outer sample as those of one bound; the first has what they share."""
        first, counts = parts[0], [p.layout.inner or 1 for p in parts]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        log_weights = {d: torch.cat([p.log_weights[d] for p in parts], 2) for d in first.log_weights}
        values = [replace(v, first=v.first + at) for p, at in zip(parts, starts, strict=True) for v in p.values]
        layout = replace(first.layout, inner=sum(counts))
        return replace(first, layout=layout, log_weights=log_weights, values=values)


def common_scale(messages: Iterable[Any], layout: Layout) -> float:
    """What multiplies the bound: the scale that all terms of a datum have in common, else that of the data's plates.

    `poutine.scale` around a whole program multiplies its bound; scales that differ (a weight on the KL terms) stay in
    the weights.
    """
    scales: list[Any] = []
    plates = 1.0
    for msg in messages:
        frames = plates_of(msg)
        if not layout.shares(frames):
            plates = subsampling_scale(p for p in frames if p.name in layout.datum)
            scales.append(msg["scale"])
    if scales and not any(torch.is_tensor(s) for s in scales):
        low, high = min(scales), max(scales)
        if low > 0 and high - low <= 1e-6 * high:
            return float(low)
    return plates

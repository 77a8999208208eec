"""The log-weights of an importance-weighted bound: the costs of rows, and doubly reparameterised gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.control_variates.leave_one_out import leave_one_out_logsumexp, leave_one_out_mean
from pyro_discrete.estimators.base import Weights
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.objectives.costs import NEVER, Costs, Order, Term
from pyro_discrete.programs.dims import Frames, Layout, plates_of, subsampling_scale
from pyro_discrete.programs.pair import Pair, trace_pair
from pyro_discrete.programs.sites import family_of, is_latent, padded, sample_sites, site_log_prob

__all__ = [
    "BoundCosts",
    "Datum",
    "DoublyValue",
    "Weighed",
    "common_scale",
    "doubly_sites",
    "doubly_weighted",
    "log_mean",
    "with_fixed_parameters",
]


Datum = frozenset[tuple[str, int]]
"""The iterations of sequential plates that data are in; empty where there are none."""


def log_mean(log_weights: Tensor) -> Tensor:
    """The bound of each datum: `[..., K, *datum dims]` in dim 2 to `[columns, S, *datum dims]`."""
    return log_weights.logsumexp(2) - math.log(log_weights.shape[2])


@dataclass(frozen=True)
class BoundCosts:
    r"""Costs under :math:`\sum_n L_n`, with :math:`L_n = \log \frac1K \sum_k w_{nk}`.

    The cost of a row r of particle k is minus the bound in which `w_nk` alone is that of the row: what an estimator
    that moves this particle has to compare. Sites that the K particles share have the costs `outer`, of which the bound
    is one term.

    - `log_weights`: log w `[columns, S, K, *datum dims]`, by the iterations of the data's sequential plates.
    - `others`: for each, the log of the sum of the other particles' weights in column 0, and the mean of their
      log-weights, `[1, S, K, *datum dims]` and detached.
    - `data`: the iterations that each site belongs to, of those that a particle has to itself.
    - `scale`: what multiplies the bound. `count`: K. `joint`: of each site in `data`, the plates within a datum.
    - `all_move`: for each column, whether all K particles of a sample have the column's weights, or one at a time.
    """

    log_weights: Mapping[Datum, Tensor]
    others: Mapping[Datum, tuple[Tensor, Tensor]]
    data: Mapping[str, Datum]
    outer: Costs
    scale: float
    count: int
    joint: Mapping[str, Frames]
    all_move: Sequence[bool]

    @property
    def order(self) -> Order:
        """The order of drawing."""
        return self.outer.order

    @staticmethod
    def others_of(log_weights: Mapping[Datum, Tensor]) -> dict[Datum, tuple[Tensor, Tensor]]:
        """`others` of these log-weights."""
        first = {datum: w[:1].detach() for datum, w in log_weights.items()}
        return {d: (leave_one_out_logsumexp(w, 2), leave_one_out_mean(w, 2)) for d, w in first.items()}

    @cached_property
    def bounds(self) -> dict[Datum, Tensor]:
        """The bound of each datum, for each row and particle `[columns, S, K, *datum dims]`."""
        out = {}
        for datum, own in self.log_weights.items():
            pair = torch.stack(torch.broadcast_tensors(own, self.others[datum][0]))
            bound = pair.logsumexp(0) - math.log(self.count)  # the slope of logaddexp's slope overflows
            if any(self.all_move):
                bound = torch.where(self._all_move(own), log_mean(own).unsqueeze(2), bound)
            out[datum] = bound
        return out

    def of(self, name: str, local: bool = True) -> Tensor | None:
        """The named site's cost `[columns * S * K, *batch]`, or `[columns * S, *batch]` if the K particles share it."""
        if name not in self.data:
            return self.outer.of(name, local)
        cost = -self.scale * self.bounds[self.data[name]].flatten(0, 2)
        sizes = list(cost.shape)
        for plate in self.order.plates.get(name, ()):  # elements within a datum have one cost in common
            if plate.dim is not None:
                sizes[plate.dim] = plate.size
        return cost.expand(sizes)

    def totals(self) -> Tensor:
        """Each column's total cost, `[columns * S]`; where one particle moves at a time, summed over which one."""
        whole = self.outer.totals()
        single = -self.scale * torch.stack([b.flatten(2).sum(2) for b in self.bounds.values()]).sum(0)
        return torch.where(self._all_move(single), whole.reshape(single.shape), single).flatten()

    def crossed_plates(self, name: str) -> Frames:
        """The site's plates whose elements share terms of its cost: those within a datum share its weight."""
        return self.joint[name] if name in self.data else self.outer.crossed_plates(name)

    def beside(self, joined: BoundCosts, number: int, particles: int = 1) -> BoundCosts:
        """The costs of a run of so many particles, as those from `number` on beside the others of `joined`."""
        here = slice(number, number + particles)
        found = {d: joined.others[d] for d in self.log_weights}
        others = {d: (total[:, :, here], mean[:, :, here]) for d, (total, mean) in found.items()}
        return replace(self, others=others, count=joined.count, all_move=(False,) * len(self.all_move))

    def weights(self, name: str) -> Weights | None:
        """How the particles of the named site are weighed, None if they share it."""
        if name not in self.data:
            return None
        datum = self.data[name]
        total, mean = self.others[datum]
        return Weights(self.log_weights[datum][0].detach(), total[0], mean[0], self.scale, self.count)

    def _all_move(self, like: Tensor) -> Tensor:
        """Whether all particles move in a column, beside a tensor with columns in front."""
        return torch.tensor(self.all_move, device=like.device).reshape((-1,) + (1,) * (like.dim() - 1))


@dataclass(frozen=True)
class DoublyValue:
    """The value of a site that takes the doubly reparameterised gradient, and the inner particles that it is of."""

    value: Tensor
    event_dim: int
    datum: Datum
    first: int
    count: int


@torch.enable_grad()
def doubly_sites(pair: Pair, trial: Trial, datum: frozenset[str]) -> frozenset[str]:
    """The guide's reparameterised sites that no later site of it depends on, as far as gradients can tell."""
    guide = sample_sites(trace_pair(pair, trial.subsamples)[0])
    found: set[str] = set()
    values: dict[Any, str] = {}
    for name, msg in guide.items():
        later = _nodes(site_log_prob({**msg, "value": msg["value"].detach()}) if is_latent(msg) else site_log_prob(msg))
        found -= {other for node, other in values.items() if node in later}
        inside = datum <= {p.name for p in plates_of(msg)}
        if is_latent(msg) and inside and family_of(msg["fn"]) is None and msg["value"].grad_fn is not None:
            values[msg["value"].grad_fn] = name
            found.add(name)
    return frozenset(found)


def _nodes(tensor: Tensor) -> set[Any]:
    """The nodes of a tensor's autograd graph."""
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return seen


def with_fixed_parameters(log_q: Tensor, at_fixed_value: Tensor) -> Tensor:
    """log q(z), differentiable in z alone: from it, and from log q at the same z held fixed."""
    return log_q - at_fixed_value + at_fixed_value.detach()


def doubly_weighted(loss: Tensor, values: Sequence[DoublyValue], log_weights: Mapping[Datum, Tensor]) -> Tensor:
    """What is to be added to a loss `[]` so that the gradient that reaches each value is multiplied by its weight."""
    inputs = [v.value for v in values if v.value.requires_grad]
    if not inputs:
        return torch.zeros_like(loss)
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    extra = torch.zeros_like(loss)
    for gradient, site in zip(found, [v for v in values if v.value.requires_grad], strict=True):
        if gradient is not None:
            weight = _beside(log_weights[site.datum].detach(), site)
            extra = extra + ((weight - 1) * gradient * site.value).sum()
    return extra


def _beside(log_weights: Tensor, site: DoublyValue) -> Tensor:
    """The normalised weights of column 0, in every column, beside the site's value."""
    weights = log_weights[:1].softmax(2)[:, :, site.first : site.first + site.count]
    weights = weights.expand(log_weights.shape[0], *weights.shape[1:]).flatten(0, 2)
    batch = site.value.dim() - site.event_dim
    kept = tuple(weights.shape[weights.dim() - batch :]) if batch else ()
    return weights.reshape(kept + (1,) * site.event_dim)


@dataclass
class Weighed:
    """The terms of a run under an importance-weighted bound.

    - `scale`: what multiplies the bound, and is divided out of the log-weights.
    - `log_weights` `[columns, S, K, *datum dims]`: differentiable, by the data's iterations of sequential plates, whose
      plates are in `frames`.
    - `data`: the iterations that each guide site belongs to, of those that each particle draws for itself.
    - `shared`: cost terms of what the K particles share, `[columns * S, *batch]`; `pathwise`: their part of the
      differentiable loss.
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
    pathwise: Tensor | float = 0.0
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

    def add_shared(self, term: Term, pathwise: Tensor | None) -> None:
        """Take in a scaled cost term of what the particles share, with its pathwise part if it has one."""
        cost = self.layout.once(term.plates, padded(term.value, self.batch_dims))
        self.shared.append(term._replace(value=cost if self.keep_graph else cost.detach()))
        if pathwise is not None:
            pathwise = self.layout.once(term.plates, padded(pathwise, self.batch_dims))
            self.pathwise = self.pathwise + pathwise[: self.layout.particles].sum()

    def loss(self) -> tuple[Tensor, Tensor]:
        """Minus the bound of the first column, summed over outer samples: differentiable, and its plain value."""
        bounds = torch.stack([log_mean(w[:1]).sum() for w in self.log_weights.values()])
        weighted = -self.scale * bounds.sum()
        value = weighted.detach() + sum((t.value.detach()[: self.layout.particles].sum() for t in self.shared), 0.0)
        if self.values:
            weighted = weighted + doubly_weighted(weighted, self.values, self.log_weights)
        return weighted + self.pathwise, value

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
            name: frozenset(p for p in order.plates[name] if p.dim is not None and p.name not in self.layout.datum)
            for name in self.data
        }
        return BoundCosts(
            log_weights,
            BoundCosts.others_of(log_weights),
            self.data,
            Costs([*self.shared, *bounds], order),
            self.scale,
            next(iter(log_weights.values())).shape[2],
            inside,
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

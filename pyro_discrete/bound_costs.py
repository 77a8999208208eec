"""The costs behind an importance-weighted bound: minus the bound with one particle's weight replaced by a row's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_discrete.control_variates.leave_one_out import leave_one_out_logsumexp, leave_one_out_mean
from pyro_discrete.costs import Costs, Order
from pyro_discrete.estimators.base import Weights

__all__ = ["BoundCosts", "Datum", "log_mean"]

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
    - `scale`: what multiplies the bound. `count`: K. `joint`: sites whose plate elements share a datum.
    - `all_move`: for each column, whether all K particles of a sample have the column's weights, or one at a time.
    """

    log_weights: Mapping[Datum, Tensor]
    others: Mapping[Datum, tuple[Tensor, Tensor]]
    data: Mapping[str, Datum]
    outer: Costs
    scale: float
    count: int
    joint: frozenset[str]
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

    def crosses_plates(self, name: str) -> bool:
        """Whether the site's cost holds terms that all elements of one of its plates share."""
        return name in self.joint if name in self.data else self.outer.crosses_plates(name)

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

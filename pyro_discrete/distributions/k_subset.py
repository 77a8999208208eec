"""Subsets of a given size, the conditional Bernoulli, by halves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.decision_graph import PathStructure, best_paths
from pyro_discrete.distributions.structure import Structure, float_or_inf
from pyro_discrete.distributions.supports import Subsets
from pyro_discrete.draws.gumbel import conditional_gumbel, gumbel_like, gumbel_max
from pyro_discrete.draws.log_space import LARGEST, log_sum_exp
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError, is_whole

__all__ = ["KSubset"]


class KSubset(PathStructure):
    r"""Subsets of k of n items, in proportion to the product of their exp(logit): independent bits given their number.

    - `logits` `[*batch, n]`; `k`: how many items are chosen.
    - A value, and its vertex: zeros and k ones, `[*batch, n]`, in the logits' dtype.

    Everything goes by halves: how many of the k items stand in the left half, how many of these in its left half, ...
    to single items; log2(n) rounds for all items and all elements. The noise is a Gumbel for every answer of every
    question that may come up (which block, how many items are in it), whether it does come up or not.

    Raises `SettingError` for a `k` outside of 1 to n and, under validation, for fewer than k logits above -inf.

    Source: Chen, Dempster and Liu (1994), Weighted finite population sampling to maximize entropy; Ahmed et al.
    (2023), SIMPLE: a gradient estimator for k-subset sampling.

    >>> d = KSubset(torch.tensor([0.0, 50.0, -50.0, 50.0]), 2)
    >>> d.sample(), d.cardinality
    (tensor([0., 1., 0., 1.]), 6.0)
    """

    soft_value: str = "weights"
    value_dims: tuple[str, ...] = ("item",)

    def __init__(self, logits: Tensor, k: int, *, validate_args: bool | None = None) -> None:
        self._check_shape(logits)
        n = logits.shape[-1]
        if not is_whole(k) or k > n:
            raise SettingError(f"KSubset: k={k!r} given, 1 to {n} (the number of items) expected.")
        self.k = k
        super().__init__(logits, validate_args=validate_args)

    def _no_mass(self) -> str:
        return f"at least {self.k} logits above -inf expected."

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return logits.shape[-1:]

    def _settings(self) -> dict[str, Any]:
        return {"k": self.k}

    @property
    def n(self) -> int:
        """The number of items."""
        return int(self.logits.shape[-1])  # a traced program's sizes are tensors

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Subsets:
        return Subsets(self.n, self.k)

    @property
    def cardinality(self) -> float:
        n, k = self.n, self.k
        size = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return float_or_inf(size, lambda: math.comb(n, k))

    def _support_list(self) -> Tensor:
        chosen = torch.tensor(list(itertools.combinations(range(self.n), self.k)))
        return torch.zeros(len(chosen), self.n, dtype=self.logits.dtype).scatter(-1, chosen, 1.0)

    def vertex(self, value: Tensor) -> Tensor:
        return value.to(self.logits.dtype)

    def value_of(self, vertex: Tensor) -> Tensor:
        return vertex

    @property
    def numbers(self) -> int:
        return 2

    def weighted(self, weights: Tensor) -> tuple[KSubset, Tensor]:
        """An item that has no weight left out has a logit of +inf: it is in every subset."""
        out, taken = weights.unbind(-1)
        weight = self.logits + taken
        certain = (out == -math.inf) & (weight > -math.inf)
        known = torch.where(out == -math.inf, torch.where(weight > -math.inf, weight, 0.0), out)
        logits = torch.where(weight > -math.inf, weight - known, weight)
        empty = ((out == -math.inf) & (weight == -math.inf)).any(-1)
        total = torch.where(empty, -math.inf, known.sum(-1))
        return self.like(torch.where(certain, math.inf, logits)), total

    # ------------------------------------------------------------------------------------------------------- by halves

    def _padded(self, x: Tensor, fill: float) -> Tensor:
        """`[..., n]` filled up to a power of two, of at least two items."""
        return F.pad(x, (0, 2 ** max(1, (self.n - 1).bit_length()) - self.n), value=fill)

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        """log Z; and from the whole down to pairs, log-probabilities `[*batch, blocks, r, a]` of a left given r."""
        leaves = self._padded(logits, -math.inf)
        certain = leaves == math.inf  # taken for sure, see `weighted`
        out = torch.where(certain, -math.inf, torch.zeros_like(leaves))
        block = torch.stack([out, torch.where(certain, 0.0, leaves)], -1)
        levels = []
        while block.shape[-2] > 1:
            left, right = block[..., 0::2, :], block[..., 1::2, :]
            most = left.shape[-1] - 1
            r = torch.arange(min(2 * most, self.k) + 1, device=leaves.device)
            if left.shape[-2] == 1:
                r = r[-1:]  # of the whole, k are chosen
            a = torch.arange(most + 1, device=leaves.device)
            other = r.unsqueeze(-1) - a
            fits = (other >= 0) & (other <= most)
            score = left.unsqueeze(-2) + torch.where(fits, right[..., other.clamp(0, most)], -math.inf)
            block = log_sum_exp(score, -1)
            levels.append(score - torch.where(block > -math.inf, block, 0.0).unsqueeze(-1))
        return block[..., 0, -1], *levels[::-1]

    @property
    def _levels(self) -> tuple[Tensor, ...]:
        return self.tables[1:]

    def _rows(self, level: int, table: Tensor, r: Tensor) -> Tensor:
        """Of `[..., blocks, r, a]` the rows at `r` `[..., blocks]`: `[..., blocks, a]`."""
        if level == 0:
            return table.squeeze(-2).expand(r.shape + table.shape[-1:])
        table = table.expand(r.shape[:-1] + table.shape[-3:])
        return table.gather(-2, r[..., None, None].expand(r.shape + (1, table.shape[-1]))).squeeze(-2)

    def _descend(self, shape: torch.Size, choose: Callable[[int, Tensor], Tensor]) -> Tensor:
        r = torch.full(shape + (1,), self.k, device=self.logits.device)
        for level in range(len(self._levels)):
            a = choose(level, r)
            r = torch.stack([a, r - a], -1).flatten(-2)
        return r[..., : self.n].to(self.logits.dtype)

    def _draw(self, shape: torch.Size) -> Tensor:
        levels = self._levels
        return self._descend(shape, lambda level, r: gumbel_max(self._rows(level, levels[level], r)))

    def _split(self, noise: Tensor) -> list[Tensor]:
        """Flat noise as one view a level, `[..., blocks, r, a]`."""
        shapes = [table.shape[-3:] for table in self._levels]
        parts = noise.split([shape.numel() for shape in shapes], -1)
        return [part.unflatten(-1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]

    def perturb(self) -> Tensor:
        flat = torch.cat([table.flatten(-3) for table in self._levels], -1).clamp(min=-LARGEST)
        return flat + gumbel_like(flat)

    def perturb_given(self, value: Tensor) -> Tensor:
        """Questions that the value answers are given their answer, the others are free."""
        value = value.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        counts = [self._padded(value, 0.0).long()]
        while counts[-1].shape[-1] > 1:
            counts.append(counts[-1].unflatten(-1, (-1, 2)).sum(-1))
        parts = []
        for level, table in enumerate(self._levels):
            r, a = counts[-1 - level], counts[-2 - level][..., 0::2]
            table = table.clamp(min=-LARGEST).expand(r.shape[:-1] + table.shape[-3:])
            at = torch.zeros_like(r) if level == 0 else r
            at = at[..., None, None].expand(r.shape + (1, table.shape[-1]))
            answered = conditional_gumbel(table.gather(-2, at), one_hot_vector(a, table).unsqueeze(-2))
            parts.append((table + gumbel_like(table)).scatter(-2, at, answered).flatten(-3))
        return torch.cat(parts, -1)

    def read(self, noise: Tensor) -> Tensor:
        best = [part.argmax(-1).unsqueeze(-1) for part in self._split(noise)]
        return self._descend(noise.shape[:-1], lambda level, r: self._rows(level, best[level], r).squeeze(-1))

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        return self._flow([(part / temperature).softmax(-1) for part in self._split(noise)])

    def _flow(self, shares: Sequence[Tensor]) -> Tensor:
        """For each block the weights of how many items it has, by the shares of all answers, down to those of one."""
        first = shares[0]
        mass = torch.ones(first.shape[:-3] + (1, 1), dtype=first.dtype, device=first.device)  # [..., blocks, r]
        for level, share in enumerate(shares):
            flow = share * mass[..., : share.shape[-2]].unsqueeze(-1)
            r = torch.arange(share.shape[-2], device=first.device)
            if level == 0:
                r = r + self.k
            most = share.shape[-1] - 1
            other = (r.unsqueeze(-1) - torch.arange(most + 1, device=first.device)).clamp(0, most)
            right = torch.zeros_like(flow[..., 0, :]).index_add(-1, other.flatten(), flow.flatten(-2))
            mass = torch.stack([flow.sum(-2), right], -2).flatten(-3, -2)
        return mass[..., : self.n, 1]

    def marginals(self) -> Tensor:
        return self._flow([level.exp() for level in self._levels])

    # ------------------------------------------------------------------------------------------------------------ best

    def argmax(self, scores: Tensor) -> Tensor:
        return torch.zeros_like(scores).scatter(-1, scores.topk(self.k, -1).indices, 1.0)

    def _best(self, scores: Tensor, k: int) -> Tensor:
        chosen = torch.arange(self.k + 1, device=self.logits.device)
        more = torch.where(chosen < self.k, chosen + 1, -1)
        target = torch.stack([chosen, more], -1)  # states: how many are chosen so far; arcs: leave the item, take it
        arcs = torch.stack([torch.zeros_like(scores), scores], -1).unsqueeze(-2).expand(scores.shape + target.shape)
        arcs = list(torch.where(target < 0, -math.inf, arcs).unbind(-3))
        arcs[-1] = torch.where(target == self.k, arcs[-1], -math.inf)
        taken = best_paths(arcs, [target] * self.n, k, type(self).__name__)[1]
        return torch.stack(taken, -1).movedim(-2, 0).to(scores.dtype)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor([0.3, -0.9, 1.1, 0.2, -0.4, 0.8], dtype=torch.float64)
        masked = logits.index_fill(0, torch.tensor([1, 4]), -math.inf)
        batch = torch.stack([logits[:5], logits[1:]])
        return [cls(logits, 3), cls(masked, 3), cls(batch, 2), cls(logits[:3], 3)]

"""Distributions averaged over draws of what is before them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.families import Family
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    family_of,
    joint_support,
    summed_by_parts,
    without_mask,
)

__all__ = [
    "MOST_CATEGORIES",
    "MixtureOfDraws",
    "Part",
    "averaged",
    "marginals_of",
    "of_values",
    "shares_of",
]


MOST_CATEGORIES = 2**14


DRAWS_OF_MEAN = 1000
"""Of so many draws the marginals of a structure are, that has them neither in closed form nor values to go through."""


Part = tuple[Any, Tensor]
"""A distribution with further dims on the left of a site's own, and its weights, of the shape of its batch."""


class MixtureOfDraws(TorchDistribution):
    """A site's distributions given what was drawn before it, weighted: `[*batch, *event]`.

    - `parts`: distributions of batch shape `[..., *batch]`, each with weights that broadcast to it; the weights of all
      that an element has add up to one.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[Part], batch_shape: torch.Size, event_shape: torch.Size) -> None:
        self.parts: list[tuple[Any, Tensor]] = [(fn, self._weights(fn, weights, batch_shape)) for fn, weights in parts]
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @staticmethod
    def _weights(fn: Any, weights: Tensor, batch_shape: torch.Size) -> Tensor:
        """`[components, *batch]`."""
        return weights.expand(fn.batch_shape).reshape(-1, *batch_shape)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.parts[0][0].support

    def _flat(self, fn: Any, values: Tensor, leading: int) -> Tensor:
        """Values `[*leading, *fn.batch, ...]` as `[*leading, components, *batch, ...]`."""
        rest = values.shape[leading + len(fn.batch_shape) :]
        return values.reshape(*values.shape[:leading], -1, *self.batch_shape, *rest)

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*sample, *batch]`."""
        leading = value.dim() - len(self.batch_shape) - len(self.event_shape)
        found = []
        for fn, weights in self.parts:
            further = len(fn.batch_shape) - len(self.batch_shape)
            own = tuple(value.shape[max(leading, 0) :])
            spread = value.reshape(*value.shape[: max(leading, 0)], *(1,) * further, *own)
            spread = spread.expand(*value.shape[: max(leading, 0)], *fn.batch_shape, *self.event_shape)
            each = self._flat(fn, fn.log_prob(spread), max(leading, 0))
            found.append((each + weights.log().to(each)).logsumexp(max(leading, 0)))
        return torch.stack(found).logsumexp(0)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self._average([fn.mean for fn, _ in self.parts])

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        squares = self._average([fn.variance + fn.mean.square() for fn, _ in self.parts])
        return squares - self.mean.square()

    def _average(self, values: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(())
        for (fn, weights), value in zip(self.parts, values, strict=True):
            own = weights.reshape(*weights.shape, *(1,) * len(self.event_shape))
            total = total + (self._flat(fn, value, 0) * own.to(value)).sum(0)
        return total

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        sample_shape = torch.Size(sample_shape)
        count, elements = math.prod(sample_shape), math.prod(self.batch_shape)
        weights = torch.cat([w for _, w in self.parts]).reshape(-1, elements)
        chosen = torch.multinomial(weights.T, count, replacement=True).T if count else weights.new_zeros(0, elements)
        chosen = chosen.long()
        # the samples of one component are draws of their own: as many draws of all as the most wanted one needs
        ordered, order = chosen.sort(dim=0, stable=True)
        place = torch.arange(count).unsqueeze(-1).expand(count, elements)
        begins = torch.ones_like(ordered, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        rank = place - torch.where(begins, place, 0).cummax(0).values if count else place
        turn = torch.empty_like(rank).scatter(0, order, rank)
        turns = int(turn.max()) + 1 if turn.numel() else 0
        drawn = torch.cat([self._flat(fn, fn.sample(torch.Size([turns])), 1) for fn, _ in self.parts], 1)
        drawn = drawn.reshape(turns, weights.shape[0], elements, *self.event_shape)
        return drawn[turn, chosen, torch.arange(elements)].reshape(self._extended_shape(sample_shape))


def of_values(fn: Any, probabilities: Tensor) -> Any:
    """A distribution `[*batch, *event]` of the kind of `fn`, from probabilities of its joint values `[*batch, values]`.

    Of counts and other kinds: a `Categorical` over the support in order; of a structure its `marginals_of`.
    """
    base, family = base_distribution(fn), family_of(fn)
    probabilities = probabilities.clamp(0, 1)
    structure = summed_by_parts(fn)
    if structure is not None:  # `[*batch, places * numbers]`
        return _of_numbers(structure, probabilities.unflatten(-1, (-1, structure.numbers))).to_event(fn.event_dim)
    if family in (Family.COUNT, Family.DISCRETE):
        return dist.Categorical(probs=probabilities)
    support = joint_support(fn).reshape(probabilities.shape[-1], *fn.event_shape)
    if isinstance(base, Structure):
        corners = base.vertex(support)
        mean = torch.tensordot(probabilities, corners.to(probabilities), dims=1)
        return marginals_of(base, mean).to_event(fn.event_dim)
    if family is Family.CATEGORICAL:
        support = F.one_hot(support.long(), base.probs.shape[-1])
    mean = torch.tensordot(probabilities, support.to(probabilities), dims=1)
    return _of_probabilities(family, mean, fn.event_dim)


def marginals_of(structure: Structure, vertex: Tensor | None = None) -> Any:
    """The distribution of each number of a structure's value by itself, of the mean of its vertex `[*batch, *vertex]`.

    A `Categorical` for each number of an index (the item at each place, the parent of each node), a `Bernoulli` for
    each of a vector (whether an item is chosen); `structure` is theirs.
    """
    vertex = _mean_vertex(structure) if vertex is None else vertex
    if structure.soft_value == "weights":
        return _of_numbers(structure, torch.stack([1 - vertex, vertex], -1))
    return _of_numbers(structure, structure.index_weights(vertex))


def _of_numbers(structure: Structure, probabilities: Tensor) -> Any:
    """The same from the probabilities of each number, `[*batch, places, numbers]`."""
    if structure.soft_value == "weights":
        made: Any = dist.Bernoulli(probs=probabilities[..., 1].clamp(0, 1))
    else:
        made = dist.Categorical(probs=probabilities.clamp(min=0))
    made.structure = structure
    return made


def _mean_vertex(structure: Structure) -> Tensor:
    """The mean of its vertex `[*batch, *vertex]`: in closed form, by all values, or of `DRAWS_OF_MEAN` draws."""
    if structure.defines("marginals"):
        return structure.marginals().detach()
    if structure.cardinality <= MOST_CATEGORIES:
        values = structure.enumerate_support(expand=False)
        log_p = structure.log_prob(values)
        corners = structure.vertex(values)
        weights = log_p.exp().reshape(log_p.shape + (1,) * (corners.dim() - values.dim() + len(structure.event_shape)))
        return (weights * corners).sum(0)
    total = torch.zeros(structure.batch_shape + structure.vertex_shape, dtype=structure.logits.dtype)
    for _ in range(DRAWS_OF_MEAN // 100):  # a hundred at once: vertices may be large
        total = total + structure.vertex(structure.sample(torch.Size([100]))).sum(0)
    return total / (DRAWS_OF_MEAN // 100 * 100)


def _of_probabilities(family: Family | None, probabilities: Tensor, event_dim: int) -> Any:
    kind = dist.Bernoulli if family is Family.BERNOULLI else dist.Categorical
    made = (dist.OneHotCategorical if family is Family.ONE_HOT else kind)(probs=probabilities.clamp(0, 1))
    return made.to_event(event_dim - len(made.event_shape))


def shares_of(fn: Any, support: Tensor) -> Tensor:
    """The probabilities of values `[values, *event]`, the same for all elements: `[*batch, values]`, double."""
    values = support.reshape(len(support), *(1,) * len(fn.batch_shape), *fn.event_shape)
    return fn.log_prob(values).double().exp().movedim(0, -1)


def averaged(plain: Any, parts: Sequence[Part]) -> Any:
    """The average of a site's distributions: of its own kind, a `Categorical` over a support of some thousand values at
    most in order, the one distribution that they all are, or else a `MixtureOfDraws`.

    `plain` is one of them, of the site's own shape.
    """
    plain, family = without_mask(plain), family_of(plain)
    parts = [(without_mask(fn), weights) for fn, weights in parts]
    batch, base = plain.batch_shape, base_distribution(plain)
    if family in (Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT) and hasattr(base, "probs"):
        shape = base.probs.shape
        total = torch.zeros(shape, dtype=torch.double)
        for fn, weights in parts:
            own = weights.expand(fn.batch_shape).reshape(-1, *batch, *(1,) * (len(shape) - len(batch)))
            total = total + (base_distribution(fn).probs.double().reshape(-1, *shape) * own).sum(0)
        return _of_probabilities(family, total.to(base.probs.dtype), plain.event_dim)
    if isinstance(base, Structure):
        shape = base.batch_shape + base.vertex_shape
        total = torch.zeros(shape, dtype=torch.double)
        for fn, weights in parts:
            own = weights.expand(fn.batch_shape).reshape(-1, *batch, *(1,) * (len(shape) - len(batch)))
            total = total + (_mean_vertex(base_distribution(fn)).double().reshape(-1, *shape) * own).sum(0)
        return marginals_of(base, total.to(base.logits.dtype)).to_event(plain.event_dim)
    if cardinality(plain) <= MOST_CATEGORIES:
        support = joint_support(plain).reshape(-1, *plain.event_shape)
        total = torch.zeros(len(support), *batch, dtype=torch.double)
        try:
            for fn, weights in parts:
                each = shares_of(fn, support).movedim(-1, 0) * weights.expand(fn.batch_shape)
                total = total + each.reshape(len(support), -1, *batch).sum(1)
            return dist.Categorical(probs=total.movedim(0, -1))
        except ValueError:
            pass  # supports that differ
    if all(_same(base_distribution(fn), base) for fn, _ in parts):
        return plain
    return MixtureOfDraws(parts, batch, plain.event_shape)


def _same(one: Any, other: Any) -> bool:
    """Whether distributions have the same parameters in all of their components."""
    names = getattr(one, "arg_constraints", {})
    pairs = [(getattr(one, n, None), getattr(other, n, None)) for n in names]
    return bool(pairs) and type(one) is type(other) and all(_same_values(a, b) for a, b in pairs)


def _same_values(one: Any, other: Any) -> bool:
    if not (torch.is_tensor(one) and torch.is_tensor(other)):
        return one is other or (not torch.is_tensor(one) and not torch.is_tensor(other) and one == other)
    return bool(torch.isclose(one, other).all())

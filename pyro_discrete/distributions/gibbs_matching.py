"""Perfect matchings in proportion to the product of their weights, exactly, over sets of columns."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

from pyro_discrete.distributions.decision_graph import DecisionGraph, DecisionLayer
from pyro_discrete.distributions.matching import Matching
from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import SettingError

__all__ = ["GibbsMatching"]


LARGEST_MATCHING = 14
"""Rows of a matching whose sets of columns are gone through."""


class GibbsMatching(Matching, DecisionGraph):
    r"""Matchings of rows and columns: :math:`p(m) \propto \exp \sum_i l_{i, m_i}`, over all permutations m.

    - `logits` `[*batch, n, n]`: of row and column. A value: the column of each row, integers `[*batch, n]`.

    Row after row takes one of the columns left; states are the 2^n sets of columns taken, so everything costs n 2^n:
    n is at most 14. `SequentialMatching` is another law, for any n.

    Raises `SettingError` for logits that are not square, for n above 14 and, under validation, where no matching has
    mass.

    Source: Ryser (1963) for permanents over sets of columns; Pyro's `OneOneMatching` has the same law without a batch.

    >>> d = GibbsMatching(torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 50.0], [50.0, 0.0, 0.0]]))
    >>> d.sample(), d.mode, d.cardinality
    (tensor([1, 2, 0]), tensor([1, 2, 0]), 6.0)
    """

    def _check_shape(self, logits: Tensor) -> None:
        super()._check_shape(logits)
        n = logits.shape[-1]
        if n > LARGEST_MATCHING:
            raise SettingError(
                f"GibbsMatching: {n} rows given, at most {LARGEST_MATCHING} expected: it goes through the "
                f"2^{n} = {2.0**n:.3g} sets of columns. SequentialMatching, another law, takes any number."
            )

    def _no_mass(self) -> str:
        return "every row needs a column above -inf that no other row needs."

    @property
    def numbers(self) -> int:
        return self.n

    def weighted(self, weights: Tensor) -> tuple[GibbsMatching, Tensor]:
        logits = self.logits + weights
        return self.like(logits), logits.new_zeros(logits.shape[:-2])

    @property
    def work(self) -> int:
        return self.n * 2**self.n

    def layers(self) -> tuple[DecisionLayer, ...]:
        return _sets_of_columns(self.n, self.logits.device)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor(
            [[0.3, -0.9, 1.1, 0.2], [-0.4, 0.8, 0.1, -1.2], [0.5, 0.0, 0.7, -0.3], [1.3, -0.6, 0.4, 0.9]]
        )
        logits = logits.double()
        masked = logits.clone()
        masked[0, 1] = masked[2, 2] = -math.inf
        return [cls(logits), cls(masked), cls(torch.stack([logits[:3, :3], logits[1:, 1:]]))]


@lru_cache(maxsize=32)
def _sets_of_columns(n: int, device: torch.device) -> tuple[DecisionLayer, ...]:
    """In layer t the sets of t columns, each with an arc for each column left."""
    layers = []
    number = {0: 0}
    for t in range(n):
        left = [[j for j in range(n) if not taken >> j & 1] for taken in number]
        following = {sum(1 << j for j in each): i for i, each in enumerate(itertools.combinations(range(n), t + 1))}
        target = [[following[taken | 1 << j] for j in each] for taken, each in zip(number, left, strict=True)]
        label = torch.tensor(left, device=device)
        layers.append(DecisionLayer(torch.tensor(target, device=device), t * n + label, label))
        number = following
    return tuple(layers)

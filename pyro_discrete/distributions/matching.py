"""What all laws of matchings share: values, vertices and their number."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.structure import Structure, float_or_inf
from pyro_discrete.distributions.supports import Lists, check_square
from pyro_discrete.draws.softening import one_hot_vector

__all__ = ["Matching"]


class Matching(Structure):
    """Rows and columns in pairs: logits `[*batch, row, column]`, a value the column of each row, `[*batch, n]`."""

    param_dim = 2
    value_dims: tuple[str, ...] = ("row",)
    number_name: str = "column"

    def _check_shape(self, logits: Tensor) -> None:
        super()._check_shape(logits)
        check_square(logits, type(self).__name__)

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.logits.shape[-1]

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return logits.shape[-1:]

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Lists:
        return Lists(self.n, self.n)

    @property
    def cardinality(self) -> float:
        return float_or_inf(math.lgamma(self.n + 1), lambda: math.factorial(self.n))

    def _support_list(self) -> Tensor:
        return torch.tensor(list(itertools.permutations(range(self.n))))

    @property
    def vertex_shape(self) -> torch.Size:
        return self.logits.shape[-2:]

    def vertex(self, value: Tensor) -> Tensor:
        return one_hot_vector(value, self.logits)

    def value_of(self, vertex: Tensor) -> Tensor:
        return vertex.argmax(-1)

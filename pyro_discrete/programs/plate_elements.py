"""Elements of a site's plates that are moved one at a time: a row for each, in which the others stay where they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

__all__ = [
    "PlateElements",
]


class PlateElements:
    """The elements of those of a site's plates that `names` has: `number` of them, one where it has none.

    `sizes`: of these plates by their dim, counted from the right.

    An estimator draws rows of values, each of every element. Moved one at a time, row 0 stays, and each further row
    becomes one for each element: the row's value there, and row 0's elsewhere. Row `1 + i (R - 1) + r - 1` is element
    i's row r, of R. What an element is told of row r is the cost of its own.
    """

    def __init__(self, plates: Iterable[CondIndepStackFrame], names: Collection[str]) -> None:
        self.sizes: dict[int, int] = {}
        if names:
            sizes = {p.dim: p.size for p in plates if p.dim is not None and p.name in names}
            self.sizes = dict(sorted(sizes.items()))
        self.number: int = math.prod(self.sizes.values())

    def __bool__(self) -> bool:
        return bool(self.sizes)

    def rows(self, value: Tensor, event_dim: int) -> Tensor:
        """`[R, K, *batch, *event]` as `[1 + number (R - 1), K, *batch, *event]`."""
        if not self:
            return value
        moved = torch.where(self._each(value, event_dim).unsqueeze(1), value[1:], value[0])
        return torch.cat([value[:1], moved.flatten(0, 1)])

    def row(self, value: Tensor, event_dim: int, row: int) -> Tensor:
        """One of these rows, `[K, *batch, *event]`."""
        if not self or row == 0:
            return value[row]
        element, further = divmod(row - 1, len(value) - 1)
        return torch.where(self._each(value, event_dim)[element], value[1 + further], value[0])

    def own(self, costs: Tensor) -> Tensor:
        """`[number * further, K, *batch]`, of each element's rows, as `[further, K, *batch]`: to each its own."""
        if not self:
            return costs
        sizes = list(costs.shape)
        for dim, size in self.sizes.items():
            sizes[dim] = size
        each = costs.expand(sizes).unflatten(0, (self.number, -1))
        return each.gather(0, self._numbers(costs.device).expand(each.shape[1:]).unsqueeze(0))[0]

    def _numbers(self, device: torch.device) -> Tensor:
        """Each element's number, with a dim for each plate from the outermost of them on, of size 1 for the others."""
        depth = -min(self.sizes)
        return torch.arange(self.number, device=device).reshape([self.sizes.get(d, 1) for d in range(-depth, 0)])

    def _each(self, value: Tensor, event_dim: int) -> Tensor:
        """For each element, where it is in a row of `value`: `[number, ..., *event]`, with dims of size 1."""
        numbers = self._numbers(value.device)
        lead = (1,) * (value.dim() - 1 - event_dim - numbers.dim())
        each = torch.arange(self.number, device=value.device).reshape((-1,) + (1,) * numbers.dim()) == numbers
        return each.reshape(self.number, *lead, *numbers.shape, *(1,) * event_dim)

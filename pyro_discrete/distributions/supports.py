"""Constraints that say which tensors are rankings, subsets, matchings and trees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_discrete.errors import SettingError

__all__ = ["Lists", "Parents", "States", "Subsets", "check_square"]


class Lists(Constraint):
    """`length` different items of n, as integers `[..., length]`; with `length` n, the permutations."""

    is_discrete = True
    event_dim = 1

    def __init__(self, n: int, length: int) -> None:
        self.n: int = n
        self.length: int = length

    def check(self, value: Tensor) -> Tensor:
        ordered = value.sort(-1).values
        inside = (ordered[..., 0] >= 0) & (ordered[..., -1] < self.n)
        return inside & _whole(value).all(-1) & (ordered[..., 1:] > ordered[..., :-1]).all(-1)

    def __repr__(self) -> str:
        return f"permutations of {self.n}" if self.length == self.n else f"lists of {self.length} of {self.n} items"


class Subsets(Constraint):
    """Vectors `[..., n]` of zeros and k ones."""

    is_discrete = True
    event_dim = 1

    def __init__(self, n: int, k: int) -> None:
        self.n: int = n
        self.k: int = k

    def check(self, value: Tensor) -> Tensor:
        return ((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == self.k)

    def __repr__(self) -> str:
        return f"vectors of {self.n} zeros and ones, {self.k} of them ones"


def check_square(logits: Tensor, name: str) -> None:
    """Raise `SettingError` if the last two dims of these logits differ, or are empty."""
    rows, columns = logits.shape[-2:]
    if rows != columns or not rows:
        raise SettingError(f"{name}: logits [.., {rows}, {columns}] given, a square last two dims expected.")


class States(Constraint):
    """Integers `[..., T]` from 0 to n - 1."""

    is_discrete = True
    event_dim = 1

    def __init__(self, n: int) -> None:
        self.n = n

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value < self.n) & _whole(value)).all(-1)

    def __repr__(self) -> str:
        return f"integers from 0 to {self.n - 1}"


def _whole(value: Tensor) -> Tensor:
    return value == value.round() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)


class Parents(Constraint):
    """Parents `[..., n - 1]` of nodes 1 to n - 1 that all lead to node 0."""

    is_discrete = True
    event_dim = 1

    def __init__(self, n: int) -> None:
        self.n = n

    def check(self, value: Tensor) -> Tensor:
        inside = ((value >= 0) & (value < self.n) & _whole(value)).all(-1)
        ancestor = F.pad(value.long().clamp(0, self.n - 1), (1, 0))
        for _ in range((self.n - 1).bit_length()):  # twice as far at each round
            ancestor = ancestor.gather(-1, ancestor)
        return inside & (ancestor == 0).all(-1)

    def __repr__(self) -> str:
        return f"parents of nodes 1 to {self.n - 1} in a tree whose root is node 0"

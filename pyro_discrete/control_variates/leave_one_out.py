"""The mean of the other particles, and the sum of their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["leave_one_out", "leave_one_out_logsumexp", "leave_one_out_mean"]


def leave_one_out(cost: Tensor) -> Tensor:
    """For each particle the mean of the others: `[K, *batch]` to `[K, *batch]`; zero if there is only one.

    >>> import torch
    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]))
    tensor([4.0000, 3.5000, 1.5000])
    """
    others = cost.shape[0] - 1
    if others == 0:
        return cost.new_zeros(()).expand_as(cost)
    rest = cost.sum(0) - cost
    return rest if others == 1 else rest / others


def leave_one_out_logsumexp(log_weights: Tensor, dim: int) -> Tensor:
    """For each particle the logarithm of the sum of the others' weights, of the same shape; -inf if there is only one.

    The sums before and after each are put together, so that nothing is ever subtracted: log(S - w_k) of a weight that
    is nearly all of the sum S would lose every digit.

    >>> import torch
    >>> leave_one_out_logsumexp(torch.tensor([0.0, 1.0, 100.0]), 0)
    tensor([100.0000, 100.0000,   1.3133])
    """
    before, after = _around(log_weights, dim, torch.logcumsumexp, -torch.inf)
    return torch.logaddexp(before, after)


def leave_one_out_mean(log_weights: Tensor, dim: int) -> Tensor:
    """For each particle the mean of the others' log-weights, which may be -inf; zero if there is only one.

    >>> import torch
    >>> leave_one_out_mean(torch.tensor([1.0, 2.0, -torch.inf]), 0)
    tensor([  -inf,   -inf, 1.5000])
    """
    before, after = _around(log_weights, dim, torch.cumsum, 0.0)
    return (before + after) / max(1, log_weights.shape[dim] - 1)


def _around(values: Tensor, dim: int, cumulated: Callable[[Tensor, int], Tensor], none: float) -> tuple[Tensor, Tensor]:
    """What accumulates before each position, and after it."""
    count, nothing = values.shape[dim], torch.full_like(values.narrow(dim, 0, 1), none)
    before = cumulated(values, dim).narrow(dim, 0, count - 1)
    after = cumulated(values.flip(dim), dim).flip(dim).narrow(dim, 1, count - 1)
    return torch.cat([nothing, before], dim), torch.cat([after, nothing], dim)

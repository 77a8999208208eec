"""Sums and products in log space that are right, with finite gradients, where nothing has mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["LARGEST", "log_sum_exp", "masked_log"]


LARGEST = 1e4
"""Noise of what cannot be stands at a log-probability of minus this: truncated noise at -inf has no gradient."""


def masked_log(x: Tensor) -> Tensor:
    """`log(x)`, and -inf with a gradient of zero where x is not positive.

    >>> masked_log(torch.tensor([1.0, 0.0]))
    tensor([0., -inf])
    """
    some = x > 0
    return torch.where(some, torch.where(some, x, 1.0).log(), -math.inf)


def log_sum_exp(table: Tensor, dim: int) -> Tensor:
    """`log(sum(exp(table)))` over one dim; -inf where all is, with a gradient that is zero there."""
    limits = torch.finfo(table.dtype)
    shift = table.detach().amax(dim, keepdim=True).clamp(limits.min, limits.max)
    return masked_log((table - shift).exp().sum(dim)) + shift.squeeze(dim)

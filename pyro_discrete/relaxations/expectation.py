"""Means of values under weights, of which some may be zero and some values infinite."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bounded", "expectation"]


def bounded(tensor: Tensor) -> Tensor:
    """The tensor with infinities made large finite numbers, so that a weight of zero makes a zero term of them.

    Multiples of these, such as a slope times a learning signal, are finite too.
    """
    if not tensor.is_floating_point():
        return tensor
    largest = torch.finfo(tensor.dtype).max ** 0.8
    return tensor.clamp(-largest, largest)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """`sum_k w_k v_k` over the last dim; the dtype of `values` if that is floating, else of `weights`."""
    total = (weights * bounded(values)).sum(-1)
    return total.to(values.dtype) if values.is_floating_point() else total

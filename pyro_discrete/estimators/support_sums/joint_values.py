"""The joint values of a site of finite support: checking their number, finding one, taking some."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.estimators.base import SiteView

__all__ = [
    "check_support",
    "index_of",
    "positive",
    "take",
]


def check_support(site: SiteView, estimator: str, largest: int, setting: str) -> int:
    """The number of joint values of one element; `EnumerationError` if it is infinite or above `largest`.

    `setting` is the estimator's argument that gives `largest`, for the message.
    """
    size = site.cardinality
    if size <= largest:
        return int(size)
    number = "infinitely many" if math.isinf(size) else f"{size:.4g}"
    raise EnumerationError(
        f"Estimator {estimator!r} lists the joint values of site {site.name!r}, and one element has {number} of them, "
        f"more than {setting}={largest}. Use 'rloo' or 'nvil' for the site, 'indecater' if its events factorise, or "
        f"declare its independent parts by a plate instead of `.to_event`."
    )


def index_of(support: Tensor, value: Tensor, event_dim: int) -> Tensor:
    """Where `value` `[K, *batch, *event]` is in `support` `[cardinality, K, *batch, *event]`: `[K, *batch]`."""
    same = support == value
    if event_dim:
        same = same.flatten(same.dim() - event_dim).all(-1)
    return same.to(torch.uint8).argmax(0)


def take(support: Tensor, index: Tensor, event_dim: int) -> Tensor:
    """The values `[rows, K, *batch, *event]` at `index` `[rows, K, *batch]` of `support`."""
    shaped = index.reshape(index.shape + (1,) * event_dim)
    return support.gather(0, shaped.expand(index.shape + support.shape[support.dim() - event_dim :]))


def positive(weight: Tensor, score: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Score and cost with zeros where the weight is: a value of probability zero may have both infinite."""
    possible = weight > 0
    return torch.where(possible, score, 0.0), torch.where(possible, cost, 0.0)

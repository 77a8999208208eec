"""What programs read off a ranking or a list of items, hard or soft: who is before whom, whose place is which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import RelaxationError, SettingError, shown

__all__ = ["inverse", "k_hot", "precedence"]


def precedence(order: Tensor) -> Tensor:
    """Whether item i is before item j: `[..., i, j]`, zeros and ones, or weights between them of a soft ranking.

    - `order`: a ranking of n items, integers `[..., n]` (the items by place), its soft value in a relaxed program, or
      weights `[..., place, item]`.

    Soft places count as independent, and no item is before itself; do not expect soft precedence to be free of cycles.
    Raises `SettingError` for a soft list of fewer places than items, and for an integer that is no item of a ranking
    of so many places, which a list of the first few may have.

    >>> precedence(torch.tensor([2, 0, 1]))
    tensor([[0., 1., 0.],
            [0., 0., 0.],
            [1., 1., 0.]])
    """
    weights = _full(order, "precedence")
    later = weights.flip(-2).cumsum(-2).flip(-2) - weights
    before = weights.mT @ later
    return before * (1 - torch.eye(before.shape[-1], dtype=before.dtype, device=before.device))


def inverse(order: Tensor) -> Tensor:
    """The place of each item, of a full ranking: integers `[..., n]`, of integers; else soft, like `order`.

    Weights `[..., place, item]` give weights `[..., item, place]`. Raises `SettingError` as `precedence` does.

    >>> inverse(torch.tensor([2, 0, 1]))
    tensor([1, 2, 0])
    """
    if _weights(order) is None:
        places = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
        return _put(order, places, order.shape[-1], "inverse")
    places = _full(order, "inverse").mT
    return order.like(places) if isinstance(_soft(order), Tensor) else places  # type: ignore[attr-defined]


def k_hot(order: Tensor, n: int) -> Tensor:
    """Which of n items a list holds, in whatever order: `[..., n]`, zeros and ones, or weights of a soft list.

    - `order`: items by place, integers `[..., k]`, their soft value in a relaxed program, or weights `[..., k, n]`.

    Raises `SettingError` for a soft list of another number of items, and for an integer that is none of the n.

    >>> k_hot(torch.tensor([3, 1]), 4)
    tensor([0., 1., 0., 1.])
    """
    weights = _weights(order)
    if weights is None:
        ones = torch.ones(order.shape, device=order.device)
        return _put(order, ones, n, "k_hot")
    if weights.shape[-1] != n:
        raise SettingError(f"k_hot: a soft list of {weights.shape[-1]} items given, n={n} expected.")
    return weights.sum(-2)


def _soft(order: Any) -> Any:
    """The weights that a relaxed value carries; None of any other."""
    return getattr(order, "weights", None)


def _weights(order: Tensor) -> Tensor | None:
    """Weights `[..., place, item]` of a soft list; None of integers."""
    weights = _soft(order)
    if weights is None:
        return order if order.is_floating_point() else None
    if not order.counts_up:  # type: ignore[attr-defined]
        raise RelaxationError(
            f"Site {order.site!r} has a relaxed value that was computed with: items 0, 1, ... are needed to tell its "  # type: ignore[attr-defined]
            "order. Take the site's own value."
        )
    return weights


def _full(order: Tensor, function: str) -> Tensor:
    """Weights `[..., place, item]` of a ranking, hard or soft."""
    weights = _weights(order)
    if weights is None:
        n = order.shape[-1]
        ones = torch.ones((*order.shape, 1), device=order.device)
        return _put(order.unsqueeze(-1), ones, n, function)
    if weights.shape[-1] != weights.shape[-2]:
        raise SettingError(
            f"{function}: a soft list of {weights.shape[-2]} of {weights.shape[-1]} items given, a full ranking "
            "expected. k_hot tells which items a list holds."
        )
    return weights


def _put(items: Tensor, what: Tensor, n: int, function: str) -> Tensor:
    """Zeros `[..., n]`, but at the items `[..., k]` what stands there for them; added up where an item is repeated."""
    zeros = torch.zeros((*items.shape[:-1], n), dtype=what.dtype, device=what.device)
    try:
        return zeros.scatter_add(-1, items.long(), what)
    except RuntimeError as error:  # told by the operation itself: a look beforehand would wait for the device
        if "out of bounds" not in str(error):
            raise
        raise SettingError(
            f"{function}: the items {shown(items.detach().unique().tolist())} given, 0 to {n - 1} expected. Of a list "
            "of the first places, k_hot(order, n) tells which of n items it holds."
        ) from error

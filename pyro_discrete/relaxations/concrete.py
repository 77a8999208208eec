"""Relaxed draws: a Bernoulli as a sigmoid of logistic noise, a one-hot vector as a softmax of Gumbel noise."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.relaxations.gumbel import gumbel_like, gumbel_max, logistic_like

__all__ = [
    "corner",
    "hard_draw",
    "moved",
    "positive_temperature",
    "relaxed_bernoulli",
    "relaxed_draw",
    "relaxed_one_hot",
    "soften",
    "straight_through",
]


def positive_temperature(temperature: float, where: str) -> float:
    """`temperature` itself; `SettingError` if it is not a positive finite number."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise SettingError(
            f"{where}: temperature={temperature!r} given, a positive number expected (lower is less biased, higher "
            "less noisy; 0.3 to 1 is usual)."
        )
    return temperature


def relaxed_bernoulli(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A draw in (0, 1) of the shape of `logits`; above one half exactly where the Bernoulli draw would be one.

    >>> import torch
    >>> bool((relaxed_bernoulli(torch.zeros(100), 0.5) <= 1).all())
    True
    """
    return ((logits + logistic_like(logits)) / temperature).sigmoid()


def relaxed_one_hot(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """A draw in the simplex, `[..., categories]`; its argmax is the draw of the categorical.

    >>> import torch
    >>> total = relaxed_one_hot(torch.zeros(5, 3), 0.5).sum(-1)
    >>> torch.allclose(total, torch.ones(5))
    True
    """
    return ((logits + gumbel_like(logits)) / temperature).softmax(-1)


def relaxed_draw(logits: Tensor, temperature: Tensor | float, *, one_hot: bool, hard: bool = False) -> Tensor:
    """A relaxed draw of either family; with `hard`, hard in the forward pass and soft in the backward pass."""
    soft = (relaxed_one_hot if one_hot else relaxed_bernoulli)(logits, temperature)
    return straight_through(corner(soft, one_hot=one_hot), soft) if hard else soft


def soften(z: Tensor, temperature: Tensor | float, *, one_hot: bool) -> Tensor:
    """The relaxed value of an unsquashed draw: a softmax over categories, or a sigmoid."""
    return (z / temperature).softmax(-1) if one_hot else (z / temperature).sigmoid()


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def corner(soft: Tensor, *, one_hot: bool) -> Tensor:
    """The hard value that a soft one is nearest to: the draw of the discrete distribution behind a relaxed draw."""
    if one_hot:
        return _one_hot(soft.argmax(-1), soft)
    return (soft > 0.5).to(soft.dtype)


def hard_draw(logits: Tensor, *, one_hot: bool) -> Tensor:
    """A draw of the discrete distribution, in the shape of `logits` and without a gradient."""
    logits = logits.detach()
    if one_hot:
        return _one_hot(gumbel_max(logits), logits)
    return (logits + logistic_like(logits) > 0).to(logits.dtype)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(like.shape[-1], device=like.device)).to(like.dtype)


def moved(logits: Tensor, z: Tensor) -> Tensor:
    """The value of `z`, with the gradient of `logits`: logits moved by noise (or a gap) that is held."""
    return z.detach() + (logits - logits.detach())

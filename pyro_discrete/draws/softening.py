"""Bits and one-hot vectors softened: by sigmoid and softmax, sparsemax and entmax; hard values with soft gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like, logistic_like
from pyro_discrete.errors import SettingError

__all__ = [
    "BINARY",
    "MAPPINGS",
    "corner",
    "entmax",
    "moved",
    "one_hot_vector",
    "positive_temperature",
    "relaxed_bernoulli",
    "relaxed_one_hot",
    "soften",
    "sparsemax",
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


def soften(z: Tensor, temperature: Tensor | float, *, one_hot: bool) -> Tensor:
    """The relaxed value of an unsquashed draw: a softmax over categories, or a sigmoid."""
    return (z / temperature).softmax(-1) if one_hot else (z / temperature).sigmoid()


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, with the gradient of `soft`."""
    return hard + (soft - soft.detach())


def corner(soft: Tensor, *, one_hot: bool) -> Tensor:
    """The hard value that a soft one is nearest to: the draw of the discrete distribution behind a relaxed draw."""
    if one_hot:
        return one_hot_vector(soft.argmax(-1), soft)
    return (soft > 0.5).to(soft.dtype)


def one_hot_vector(index: Tensor, like: Tensor) -> Tensor:
    """Integers `[...]` as vectors `[..., categories]`, with as many categories as the last dim of `like`, in its dtype.

    >>> one_hot_vector(torch.tensor([2, 0]), torch.zeros(3))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    # torch.nn.functional.one_hot looks at the values, which a captured step cannot
    return (index.unsqueeze(-1) == torch.arange(like.shape[-1], device=like.device)).to(like.dtype)


def moved(logits: Tensor, z: Tensor) -> Tensor:
    """The value of `z`, with the gradient of `logits`: logits moved by noise (or a gap) that is held."""
    return z.detach() + (logits - logits.detach())


def _ordered(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores `[..., categories]` less their largest, the same sorted down, and the numbers from 1.

    What is below the largest by one or more has no weight: these scores are made alike, -inf among them.
    """
    shifted = (scores - scores.detach().amax(-1, keepdim=True)).clamp(min=-2)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    return shifted, shifted.sort(-1, descending=True).values, rank


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex nearest to `scores` `[..., categories]`, in their shape.

    Source: Martins and Astudillo (2016), From softmax to sparsemax, algorithm 1.

    >>> import torch
    >>> sparsemax(torch.tensor([0.5, 0.3, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """
    shifted, ordered, rank = _ordered(scores)
    supported = 1 + rank * ordered > ordered.cumsum(-1)
    size = supported.sum(-1, keepdim=True)
    threshold = (torch.where(supported, ordered, 0.0).sum(-1, keepdim=True) - 1) / size
    return (shifted - threshold).clamp(min=0)


def entmax(scores: Tensor) -> Tensor:
    """1.5-entmax of `scores` `[..., categories]`, in their shape: between softmax and sparsemax.

    p = (z / 2 - threshold)_+ ^ 2, with the threshold at which p sums to one.

    Source: Peters, Niculae and Martins (2019), Sparse sequence-to-sequence models, algorithm 2.

    >>> import torch
    >>> entmax(torch.tensor([1.0, 1.0, -3.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    shifted, ordered, rank = _ordered(scores / 2)
    mean = ordered.cumsum(-1) / rank
    spread = rank * (ordered.square().cumsum(-1) / rank - mean.square())  # sum of squared distances from the mean
    thresholds = mean - ((1 - spread) / rank).clamp(min=torch.finfo(scores.dtype).tiny).sqrt()
    size = (thresholds <= ordered).sum(-1, keepdim=True)
    return (shifted - thresholds.gather(-1, size - 1)).clamp(min=0).square()


def binary_sparsemax(score: Tensor) -> Tensor:
    """The second weight of `sparsemax` of the scores 0 and `score`, in its shape."""
    return ((1 + score) / 2).clamp(0, 1)


def binary_entmax(score: Tensor) -> Tensor:
    """The second weight of `entmax` of the scores 0 and `score`, in its shape."""
    half = (score / 2).clamp(-1, 1)
    return (1 + half * (2 - half.square()).sqrt()) / 2


MAPPINGS: dict[str, Callable[[Tensor], Tensor]] = {"entmax": entmax, "sparsemax": sparsemax}


BINARY: dict[str, Callable[[Tensor], Tensor]] = {"entmax": binary_entmax, "sparsemax": binary_sparsemax}

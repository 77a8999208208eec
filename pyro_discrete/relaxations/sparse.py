"""Sparse mappings from scores to the simplex: sparsemax and 1.5-entmax, and what they are of two categories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BINARY", "MAPPINGS", "entmax", "sparsemax"]


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

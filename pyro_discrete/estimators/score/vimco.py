"""VIMCO: the score function on the importance-weighted bound, each particle's baseline made of the others."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate, Weights

__all__ = [
    "VIMCO",
]


class VIMCO(Estimator):
    r"""Variational inference for Monte Carlo objectives: leave-one-out learning signals of the K-sample bound.

    .. math:: \sum_k (\hat L - \hat L_{-k})\,\nabla \log q(z_k) + \sum_k \tilde w_k \nabla \log w_k, \qquad
        \hat L_{-k} = \log \frac1K \Big(\sum_{j \ne k} w_j + \hat w_{-k}\Big)

    :math:`\hat L = \log \frac1K \sum_k w_k` is a datum's bound. In :math:`\hat L_{-k}` the particle's weight is the
    geometric or the arithmetic mean of the others', so that the baseline is independent of the particle: unbiased, one
    evaluation a particle, nothing to tune. The second sum, the gradient of the bound at fixed draws, is the objective's
    own. Works on `TraceIWELBO` alone, with `num_particles >= 2`, at every kind of site that belongs to
    a datum; sites that the K particles share get the choice of "auto" instead.

    - `mean`: `"geometric"` or `"arithmetic"`. With the latter :math:`\hat L_{-k}` is the bound of the K - 1 others.

    Raises `SettingError` for another mean.

    Source: Mnih and Rezende (2016), Variational inference for Monte Carlo objectives.

    >>> from pyro_discrete import TraceIWELBO
    >>> elbo = TraceIWELBO("vimco", num_particles=8)
    """

    name = "vimco"
    summary = "on `TraceIWELBO`: score function, the bound without the particle as its baseline"
    reference = "Mnih & Rezende 2016"
    also_known: tuple[str, ...] = ("iwae", "importance_weighted")
    evaluations = "1 a particle, 2 or more particles"
    importance_weighted = True
    min_inner = 2

    def __init__(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        super().__init__()
        if mean not in ("geometric", "arithmetic"):
            raise SettingError(f"VIMCO: mean={mean!r} given, 'geometric' or 'arithmetic' expected.")
        self.mean = mean

    def extra_repr(self) -> str:
        return "" if self.mean == "geometric" else f"mean={self.mean!r}"

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls("arithmetic")]

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, S, K, *batch]`: minus the bound, times its scale."""
        weights = draw.weights
        if weights is None:
            raise RuntimeError("a draw without weights: VIMCO serves the particles of TraceIWELBO")
        return Surrogate(draw.score * (cost[0] + weights.scale * self.bound_without(weights)))

    def bound_without(self, weights: Weights) -> Tensor:
        """The bound in which each particle's weight is that of the others' mean."""
        if self.mean == "arithmetic":  # (S + S / (K - 1)) / K = S / (K - 1), S the sum of the others
            return weights.others - math.log(weights.count - 1)
        return torch.logaddexp(weights.others, weights.mean) - math.log(weights.count)

"""MuProp: the score function, less the Taylor expansion of the cost about the mean, plus that expansion's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.control_variates.moments import RunningMoments
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import RELAXABLE, Family, Need

__all__ = [
    "MuProp",
]


class MuProp(Estimator):
    r"""The score function with the first-order expansion about the mean-field value as its control variate.

    .. math:: \big(f(z) - f(\mu) - f'(\mu)^\top (z - \mu) - c\big) \nabla \log q(z) + f'(\mu)^\top \nabla \mu

    with `mu` the mean of q, and `c` the running mean of the residual, read before it is updated. Two evaluations (hard
    and mean, downstream of which relaxable sites take their mean too); the model has to accept soft values. Exact, draw
    by draw, for a linear `f`. Serves Bernoulli, Categorical and OneHotCategorical sites, and
    structures with marginals.

    The residual of a curved `f` is far from zero on average (a quarter of the second derivative for a fair bit), which
    is why there is always a baseline `c`: without it, the estimator may be noisier than the plain score function. It
    helps least where `f` bends most between its corners, as with a peaked likelihood.

    - `decay` of the running mean, in (0, 1); `SettingError` outside.

    Source: Gu, Levine, Sutskever and Mnih (2016), MuProp: unbiased backpropagation for stochastic neural networks.

    >>> from pyro_discrete import MuProp, TraceELBO
    >>> elbo = TraceELBO(MuProp(decay=0.95))
    """

    name = "muprop"
    summary = "score function less a first-order expansion about the mean, running mean of the residual as baseline"
    reference = "Gu et al. 2016"
    evaluations = "2"
    families: frozenset[Family] = RELAXABLE | {Family.STRUCTURE}
    needs: frozenset[Need] = frozenset({Need.MARGINALS, Need.LOG_MASS})
    relaxed: tuple[int, ...] = (1,)

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise SettingError(f"MuProp: decay={decay} given, a number between 0 and 1 expected.")
        self.residuals: RunningMoments = RunningMoments(decay)

    @property
    def rests_on_slopes(self) -> bool:
        """No: whatever stands for the slope at the mean, which no draw moves, is made up for."""
        return False

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        """A hard draw, and the mean."""
        return Draw(torch.stack([site.sample(), site.mean()]))

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[2, K, *batch]`; the slope of row 1 is that of the row's total cost."""
        z, mu = draw.value
        slope = draw.slopes[1].detach()
        linear = (slope * (z - mu).detach()).reshape(*cost.shape[1:], -1).sum(-1)
        residual = (cost[0] - cost[1] - linear).detach() / draw.scale
        signal = (residual - self.residuals.mean.to(residual)) * draw.scale
        self.residuals.update(residual)
        return Surrogate(draw.score * signal + (slope * mu).reshape(*cost.shape[1:], -1).sum(-1))

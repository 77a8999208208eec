"""ARMS: leave-one-out over several antithetic draws of each bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_discrete.draws.couplings import COPULAS
from pyro_discrete.estimators.base import Draw, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import SeveralDraws, logits_of, over
from pyro_discrete.families import Family

__all__ = [
    "ARMS",
]


class ARMS(SeveralDraws):
    r"""Antithetic REINFORCE with several draws: leave-one-out, corrected for the draws' dependence.

    .. math:: \frac{1}{n-1} \sum_{i=1}^n \Big(f(b_i) - \frac1n \sum_j f(b_j)\Big)(b_i - p)\;
        \frac{p(1-p)}{p - P(b_i = b_j = 1)}

    The gradient on the logit of each bit, from n draws, any two of which are as unlike as possible: b_i = 1[u_i < p]
    for p up to one half, and 1 - 1[u_i < 1 - p] above, with u from a Dirichlet copula. With two draws this is
    `DisARM`, with independent ones `RLOO`. Serves Bernoulli sites with any event dims; n evaluations a particle, all
    downstream of the same values, unbiased. It gains over independent draws where few bits matter; where the
    costs of hundreds of bits add up, dependence within each bit is of little help.

    - `draws`: n, at least 2. `num_particles` multiplies it with independent repetitions.
    - `copula`: `"dirichlet"`, or `"independent"`, which is `RLOO` on rows that share what is upstream. The paper's
      other one, Gaussian, is not here: its joint probabilities need quadrature.

    Raises `SettingError` for a setting out of range.

    Source: Dimitriev and Zhou (2021), ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables.

    >>> from pyro_discrete import ARMS, TraceELBO
    >>> elbo = TraceELBO(ARMS(draws=8))
    """

    name = "arms"
    summary = "leave-one-out over several antithetic draws"
    reference = "Dimitriev & Zhou 2021a"
    evaluations = "n = 4 (`draws`)"
    families: frozenset[Family] = frozenset({Family.BERNOULLI})

    def draw(self, site: SiteView) -> Draw:
        """The draws `[n, K, *batch, *event]`."""
        logits = site.logits
        phi = logits.detach()
        rare = COPULAS[self.copula].log_uniforms(self.draws, phi) < logsigmoid(-phi.abs())
        return Draw(torch.where(phi > 0, ~rare, rare).to(phi.dtype), logits=logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[n, K, *batch]`. Centred bits instead of b - p: the centred costs sum to zero."""
        logits = logits_of(draw)
        centred = over(cost - cost.mean(0), draw.event_dim)
        bits = draw.value - draw.value.mean(0)
        weight = (centred * bits).sum(0) / (self.draws - 1)
        return Surrogate(weight * self._correction(logits.detach()) * logits)

    def _correction(self, phi: Tensor) -> Tensor:
        """p (1 - p) / (p - P(b_i = b_j = 1)), which is the same for p and 1 - p; in terms of r, the smaller one."""
        together = COPULAS[self.copula].together(logsigmoid(-phi.abs()), self.draws)
        return phi.abs().sigmoid() / (1 - together)

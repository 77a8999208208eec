"""Augment-REINFORCE-merge: an antithetic pair of draws, weighted by the noise that made it."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.gumbel import logistic_like
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import antithetic_pair, logits_of, over
from pyro_discrete.families import Family

__all__ = [
    "ARM",
]


class ARM(Estimator):
    r"""The augment-REINFORCE-merge estimator.

    .. math:: \big(f(1[u > 1 - p]) - f(1[u < p])\big)\,(u - \tfrac12), \qquad u \sim \mathrm{Uniform}(0, 1)

    The gradient on the logit of each bit. With u the sigmoid of logistic noise e, the pair is b = 1[phi + e > 0] and
    b' = 1[phi - e > 0], and u - 1/2 = tanh(e / 2) / 2, so that no 1 - p is ever formed. Serves Bernoulli sites with any
    event dims; two evaluations a particle, nothing to tune, unbiased. `DisARM` is the mean of this estimate given the
    pair: use that one; this one is here to be compared with.

    Source: Yin and Zhou (2019), ARM: augment-REINFORCE-merge gradient for stochastic binary networks.

    >>> from pyro_discrete import ARM, TraceELBO
    >>> elbo = TraceELBO(ARM())
    """

    name = "arm"
    summary = "antithetic pair of draws, weighted by its noise"
    reference = "Yin & Zhou 2019"
    evaluations = "2"
    families: frozenset[Family] = frozenset({Family.BERNOULLI})

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        """The pair `[2, K, *batch, *event]`, and its noise `[K, *batch, *event]`."""
        logits = site.logits
        noise = logistic_like(logits)
        return Draw(antithetic_pair(logits, noise), logits=logits, extra={"noise": noise})

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[2, K, *batch]`. Where the pair agrees in a bit, the cost's difference is other bits' doing."""
        centred = 0.5 * (draw.extra["noise"] / 2).tanh()  # u - 1/2
        return Surrogate(over(cost[0] - cost[1], draw.event_dim) * centred * logits_of(draw))

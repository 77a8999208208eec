"""DisARM: an antithetic pair of draws, with the noise that made it integrated out."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.gumbel import logistic_like
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import antithetic_pair, disarm_weight, logits_of, over
from pyro_discrete.families import Family

__all__ = [
    "DisARM",
]


class DisARM(Estimator):
    r"""DisARM, also known as U2G: the cost's difference over an antithetic pair of draws.

    .. math:: \tfrac12 \big(f(b) - f(b')\big)\,(-1)^{b'}\,1[b \ne b']\,\sigma(|\phi|),
        \qquad b = 1[\phi + e > 0],\; b' = 1[\phi - e > 0],\; e \sim \mathrm{Logistic}

    The gradient on the logit phi of each bit; the bits of an event and of a plate have noise of their own and share the
    two evaluations. Serves Bernoulli sites with any event dims; two evaluations a particle, nothing to tune, unbiased.
    It is ARM with its noise integrated out, given the pair, so never noisier. A bit gets a gradient only where the pair
    differs, which has probability 2 min(p, 1 - p): near the boundary it is rare and large (`BitFlip1` mends that), and
    with many bits whose differences add up it is no better than `RLOO` with two particles. Several layers: each
    restarts its own pair from the primary draw, so T of them cost T + 1 evaluations.

    Source: Dong, Mnih and Tucker (2020), DisARM: an antithetic gradient estimator for binary latent variables; Yin, Ho,
    Yan, Qian and Zhou (2020), Probabilistic best subset selection via gradient-based optimization (U2G).

    >>> from pyro_discrete import DisARM, TraceELBO
    >>> elbo = TraceELBO({"z*": DisARM()})
    """

    name = "disarm"
    summary = "antithetic pair of draws, its noise integrated out"
    reference = "Dong, Mnih & Tucker 2020; Yin et al. 2020"
    also_known: tuple[str, ...] = ("u2g", "unbiased_uniform_gradient")
    evaluations = "2"
    families: frozenset[Family] = frozenset({Family.BERNOULLI})

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        """The pair `[2, K, *batch, *event]`."""
        logits = site.logits
        return Draw(antithetic_pair(logits, logistic_like(logits)), logits=logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[2, K, *batch]`."""
        logits = logits_of(draw)
        difference = over(cost[0] - cost[1], draw.event_dim)
        return Surrogate(difference * disarm_weight(draw.value, logits.detach()) * logits)

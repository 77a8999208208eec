"""The score function with the other particles' mean cost as its baseline."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.control_variates.leave_one_out import leave_one_out
from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate

__all__ = [
    "RLOO",
]


class RLOO(Estimator):
    r"""REINFORCE leave-one-out over K particles.

    .. math:: \frac{1}{K} \sum_k \Big(f_k - \frac{1}{K-1} \sum_{j \ne k} f_j\Big) \nabla \log q(z_k)

    Serves every kind of site, is unbiased, has nothing to tune, and needs `num_particles >= 2`. The baseline of a
    particle is independent of it, so its mean with the score is zero.

    Source: Salimans and Knowles (2014), On using control variates with stochastic approximation for variational
    Bayes; Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free!

    >>> from pyro_discrete import TraceELBO
    >>> elbo = TraceELBO("rloo", num_particles=4)
    """

    name = "rloo"
    summary = "score function, leave-one-out mean of the other particles as baseline"
    reference = "Salimans & Knowles 2014; Kool et al. 2019"
    also_known: tuple[str, ...] = ("loo", "leave_one_out", "reinforce_loo")
    evaluations = "1 a particle, 2 or more particles"
    min_particles = 2

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`."""
        cost = cost.squeeze(0)
        return Surrogate(draw.score * (cost - leave_one_out(cost)))

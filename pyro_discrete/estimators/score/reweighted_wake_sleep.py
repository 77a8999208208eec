"""Reweighted wake-sleep: the guide follows the weighted particles, the model the importance-weighted bound."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate

__all__ = [
    "ReweightedWakeSleep",
]


class ReweightedWakeSleep(Estimator):
    r"""The wake update of the guide: its particles, weighted as posterior samples, are made more probable.

    .. math:: \sum_k \tilde w_k \nabla_\phi \log q(z_k), \qquad \tilde w_k = w_k \Big/ \sum_j w_j

    It needs no learning signal, and is better with more particles. But it is the gradient of another objective: an
    estimate (biased at finite K) of that of KL(p(z | x) || q(z)), so it is declared biased; the loss that is returned
    is the bound, which trains the model. Works on `TraceIWELBO` with `num_particles >= 2`, at every kind of site that
    belongs to a datum. Continuous reparameterised sites stay pathwise, on the bound. The sleep update, on draws of the
    model, is not part of it.

    Source: Bornschein and Bengio (2015), Reweighted wake-sleep; Le, Kosiorek, Siddharth, Teh and Wood (2019),
    Revisiting reweighted wake-sleep for models with stochastic control flow.

    >>> from pyro_discrete import TraceIWELBO
    >>> elbo = TraceIWELBO("reweighted_wake_sleep", num_particles=8)
    """

    name = "reweighted_wake_sleep"
    summary = "on `TraceIWELBO`: the guide maximises log q of the weighted particles"
    reference = "Bornschein & Bengio 2015; Le et al. 2019"
    also_known: tuple[str, ...] = ("rws", "wake_sleep")
    evaluations = "1 a particle, 2 or more particles"
    unbiased = False
    importance_weighted = True
    min_inner = 2
    direct_term = False

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """The cost is not used: the particles' weights are."""
        weights = draw.weights
        if weights is None:
            raise RuntimeError("a draw without weights: ReweightedWakeSleep serves the particles of TraceIWELBO")
        normalised = (weights.own - torch.logaddexp(weights.own, weights.others)).exp()
        return Surrogate(-weights.scale * normalised * draw.score)

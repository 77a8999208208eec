"""The plain score-function estimator."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate

__all__ = [
    "Reinforce",
]


class Reinforce(Estimator):
    r"""The score-function (REINFORCE) estimator :math:`f(z)\,\nabla \log q(z)`, without a control variate.

    Serves every kind of site and is unbiased. One evaluation per particle. Its variance grows with the square of the
    cost, so it is a reference to compare with more than a way to train.

    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement
    learning; Ranganath, Gerrish and Blei (2014), Black box variational inference.

    >>> from pyro_discrete import TraceELBO
    >>> elbo = TraceELBO("reinforce", num_particles=10)
    """

    name = "reinforce"
    summary = "score function without a control variate"
    reference = "Williams 1992"
    also_known: tuple[str, ...] = ("score_function", "score", "likelihood_ratio", "sfe")

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`."""
        return Surrogate(draw.score * cost.squeeze(0))

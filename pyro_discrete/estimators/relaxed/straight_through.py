"""The straight-through estimator."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.noise import Perturbed
from pyro_discrete.draws.schedules import Temperature, temperature_at
from pyro_discrete.draws.softening import straight_through
from pyro_discrete.estimators.relaxed.base import RelaxedLaw
from pyro_discrete.families import Need

__all__ = [
    "StraightThrough",
]


class StraightThrough(RelaxedLaw):
    r"""A hard draw in the forward pass, the gradient of its probabilities in the backward pass.

    .. math:: f'(D)\, \nabla\, \mathrm{softmax}(\mathrm{logits} / t), \quad D \sim q

    The model sees only hard values, so the loss is the discrete objective's. One evaluation, and no noise beside the
    draw's own. At t = 1 it is exact where f is linear in each variable, and biased otherwise: it reads f as its tangent
    at D. Serves Bernoulli, Categorical and OneHotCategorical sites, counts, and structures with marginals (SIMPLE).

    - `temperature`: of the backward pass alone. The draw is always one of q.

    Raises `SettingError` if `temperature` is not positive.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Bengio, Leonard and Courville (2013), Estimating or propagating gradients through stochastic neurons for
    conditional computation, section 4 (with the derivative of the sigmoid); for categories, Liu et al. (2023), Bridging
    discrete and backpropagation, section 2; for structures, Ahmed et al. (2023), SIMPLE: a gradient estimator for
    k-subset sampling.

    >>> from pyro_discrete import StraightThrough, TraceELBO
    >>> elbo = TraceELBO(StraightThrough())
    """

    name = "straight_through"
    summary = "hard draw forward, gradient of its probabilities backward"
    reference = "Bengio et al. 2013"
    needs: frozenset[Need] = frozenset({Need.MARGINALS})
    also_known: tuple[str, ...] = ("st", "ste")

    def __init__(self, temperature: Temperature = 1.0) -> None:
        super().__init__(temperature)

    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """The hard draw, with the probabilities' gradient."""
        return straight_through(law.hard(), law.mean(law.logits / temperature_at(self.temperature, step)))

"""The Gumbel-Softmax (Concrete) relaxation."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.estimators.relaxed import RelaxedEstimator
from pyro_discrete.relaxations.concrete import relaxed_draw
from pyro_discrete.relaxations.schedules import Temperature

__all__ = ["GumbelSoftmax"]


class GumbelSoftmax(RelaxedEstimator):
    r"""The pathwise gradient through a relaxed draw.

    .. math:: \nabla f\big(\mathrm{softmax}((\mathrm{logits} + G) / t)\big), \quad G \sim \mathrm{Gumbel}

    (for a Bernoulli, a sigmoid of logistic noise). One evaluation; low variance; biased, the less the lower the
    temperature, at the price of variance. The model is evaluated at soft values; log-masses of prior and posterior
    are extended linearly to them. Serves Bernoulli and OneHotCategorical sites.

    Raises `SettingError` if `temperature` is not positive.

    The default temperature had the best discrete ELBO of six on two programs (benchmarks/RESULTS.md); the literature
    has 2/3 for Bernoulli variables.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax; Maddison, Mnih and Teh
    (2017), The Concrete distribution.

    >>> from pyro_discrete import GumbelSoftmax, TraceELBO
    >>> elbo = TraceELBO(GumbelSoftmax(temperature=0.5))
    """

    name = "gumbel_softmax"
    summary = "pathwise gradient through a relaxed draw"
    reference = "Jang et al. 2017; Maddison et al. 2017"

    def __init__(self, temperature: Temperature = 0.35) -> None:
        super().__init__(temperature, hard=False)

    def weights(self, logits: Tensor, temperature: Tensor | float, one_hot: bool) -> Tensor:
        """The relaxed draw."""
        return relaxed_draw(logits, temperature, one_hot=one_hot)

"""The straight-through Gumbel-Softmax."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.noise import Perturbed, relaxed_draw
from pyro_discrete.draws.schedules import Temperature, temperature_at
from pyro_discrete.estimators.relaxed.base import RelaxedLaw
from pyro_discrete.families import Need

__all__ = [
    "StraightThroughGumbelSoftmax",
]


class StraightThroughGumbelSoftmax(RelaxedLaw):
    r"""Hard draws in the forward pass, the gradient of the relaxed draw in the backward pass.

    .. math::
        f'(D)\, \nabla\, \mathrm{softmax}((\mathrm{logits} + G) / t), \quad D =
        \mathrm{onehot}(\arg\max(\mathrm{logits} + G))

    The model sees only hard values, so the loss is the discrete objective's; the gradient is biased. One evaluation.
    Serves Bernoulli, Categorical and OneHotCategorical sites, counts, and structures with noise.

    When to use which: at 0.5 and above its bias keeps together categories that start alike, which the exact gradient
    and `ReinMax` part slowly and soft values at once ("The stall" in benchmarks/results/RESULTS.md).

    Raises `SettingError` if `temperature` is not positive.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax, section 2.2.

    >>> from pyro_discrete import StraightThroughGumbelSoftmax, TraceELBO
    >>> elbo = TraceELBO(StraightThroughGumbelSoftmax(temperature=0.65))
    """

    name = "straight_through_gumbel_softmax"
    summary = "hard draw forward, gradient of the relaxed draw backward"
    reference = "Jang et al. 2017"
    needs: frozenset[Need] = frozenset({Need.NOISE})
    also_known: tuple[str, ...] = ("stgs", "st_gs", "gumbel_straight_through")

    def __init__(self, temperature: Temperature = 0.65) -> None:
        super().__init__(temperature)

    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """Hard values that carry the relaxed draw's gradient."""
        return relaxed_draw(law, temperature_at(self.temperature, step), hard=True)

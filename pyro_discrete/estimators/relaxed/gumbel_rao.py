"""Gumbel-Rao: the straight-through Gumbel-Softmax, averaged over the noise that the draw leaves open."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.noise import Perturbed
from pyro_discrete.draws.schedules import Temperature, temperature_at
from pyro_discrete.draws.softening import moved, straight_through
from pyro_discrete.errors import SettingError, is_whole
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.relaxed.base import RelaxedLaw
from pyro_discrete.families import Need

__all__ = [
    "GumbelRao",
]


class GumbelRao(RelaxedLaw):
    r"""The straight-through Gumbel-Softmax with its noise averaged out, given the hard draw.

    .. math::
        f'(D)\, \frac{1}{K} \sum_k \nabla\, \mathrm{softmax}\big((\mathrm{logits} + G^k) / t\big), \quad
        G^k \sim \mathrm{Gumbel} \mid \arg\max(\mathrm{logits} + G^k) = D

    (the gradient is taken with the noise G held). One evaluation of the model, whatever K is: only the softmax is
    repeated. The bias is that of the straight-through Gumbel-Softmax at this temperature, to which it is equal in
    distribution at K = 1; the variance falls with K, so a lower temperature can be afforded. Serves Bernoulli,
    Categorical and OneHotCategorical sites, counts, and structures with noise given a value.

    - `draws`: K.

    Raises `SettingError` for a setting out of range.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Paulus, Maddison and Krause (2021), Rao-Blackwellizing the straight-through Gumbel-Softmax gradient
    estimator.

    >>> from pyro_discrete import GumbelRao, TraceELBO
    >>> elbo = TraceELBO(GumbelRao(draws=10))
    """

    name = "gumbel_rao"
    summary = "straight-through Gumbel-Softmax with its noise averaged out given the draw"
    reference = "Paulus et al. 2021"
    needs: frozenset[Need] = frozenset({Need.NOISE, Need.NOISE_GIVEN})
    also_known: tuple[str, ...] = ("gr", "gumbel_rao_blackwell")

    def __init__(self, temperature: Temperature = 0.25, draws: int = 10) -> None:
        super().__init__(temperature)
        if not is_whole(draws):
            raise SettingError(f"GumbelRao: draws={draws!r} given, a whole number of at least one expected.")
        self.draws = draws

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, draws={self.draws}"

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(draws=1)]

    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """The hard draw, with the averaged gradient."""
        z = law.perturb()
        value = law.read(z)
        with torch.no_grad():
            several = law.perturb_given(value.expand(self.draws, *value.shape))
        # the noise is held, and what it is added to has the slope that it has behind the draw itself
        soft = law.soft(moved(z, several), temperature_at(self.temperature, step))
        return straight_through(value, soft.mean(0))

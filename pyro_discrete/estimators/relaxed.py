"""What the relaxed estimators share: one row, whose value is a differentiable function of the logits."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyro_discrete.estimators.base import RELAXABLE, Draw, Estimator, Family, SiteView, Surrogate
from pyro_discrete.relaxations.concrete import positive_temperature

__all__ = ["RelaxedEstimator"]


class RelaxedEstimator(Estimator):
    """A pathwise gradient through weights that stand for a discrete value.

    A subclass says how logits become weights; that is all there is to it. The weights are a point of the simplex over
    the categories, or a number in [0, 1] for a Bernoulli, which is a simplex of two with one weight left out.
    """

    families = RELAXABLE
    unbiased = False
    relaxed = (0,)

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = positive_temperature(temperature, type(self).__name__)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:.3g}"

    @abstractmethod
    def weights(self, logits: Tensor, temperature: float, one_hot: bool) -> Tensor:
        """Weights in the shape of `logits`: `[..., categories]`, or `[...]` for a Bernoulli (`one_hot=False`)."""

    def draw(self, site: SiteView) -> Draw:
        """One row, differentiable in the logits; drawn in single precision at least, whatever the networks' is."""
        logits = site.logits.to(torch.promote_types(site.logits.dtype, torch.float32))
        return Draw(self.weights(logits, self.temperature, site.family is not Family.BERNOULLI).unsqueeze(0))

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """Nothing to add: the gradient flows through the draw."""
        return Surrogate()

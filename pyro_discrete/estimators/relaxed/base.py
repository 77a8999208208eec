"""What the relaxed estimators share: one row, whose value is a differentiable function of the logits."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyro_discrete.draws.schedules import LearnedTemperature, Temperature, checked_temperature, described
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import PATHWISE, Family

__all__ = [
    "RelaxedEstimator",
]


class RelaxedEstimator(Estimator):
    """A pathwise gradient through weights that stand for a discrete value.

    A subclass says how logits become weights; that is all there is to it. The weights are a point of the simplex over
    the categories, or a number in [0, 1] for a Bernoulli, which is a simplex of two with one weight left out.

    - `temperature`: a number, a `Schedule` or another function of the step, or `LearnedTemperature` where values are
      soft in the forward pass (`hard=False`).
    - `may_be_analytic`: whether its draws come with their probabilities as a point at which the site can be scored.
    """

    families = PATHWISE
    unbiased = False
    relaxed = (0,)
    may_be_analytic: bool = False

    def __init__(self, temperature: Temperature, hard: bool = True) -> None:
        super().__init__()
        if hard:
            self.refuse_learned("temperature", temperature)
        self.temperature = checked_temperature(temperature, type(self).__name__)

    def refuse_learned(self, setting: str, given: object) -> None:
        """`SettingError` for a parameter among the settings of an estimator whose values are hard."""
        if isinstance(given, LearnedTemperature):
            raise SettingError(
                f"{type(self).__name__}: {setting}={given!r} given, but its values are hard: the loss does not depend "
                "on it and cannot train it. Give a number or a schedule, or use GumbelSoftmax."
            )

    def extra_repr(self) -> str:
        return f"temperature={described(self.temperature)}"

    def analytic(self, integers: bool) -> bool:
        """Whether a site's divergence is to be analytic if it can be; `integers`: whether integers are drawn there."""
        return False

    @abstractmethod
    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """Weights in the shape of `logits`: `[..., categories]`, or `[...]` for a Bernoulli (`one_hot=False`).

        `step` is what schedules are read at.
        """

    def draw(self, site: SiteView) -> Draw:
        """One row, differentiable in the logits."""
        logits, one_hot = self.logits(site)
        return Draw(self.weights(logits, site.step, one_hot).unsqueeze(0))

    @staticmethod
    def logits(site: SiteView) -> tuple[Tensor, bool]:
        """The site's logits, in single precision at least (the networks' may be less), and whether they are one-hot."""
        logits = site.logits.to(torch.promote_types(site.logits.dtype, torch.float32))
        return logits, site.family is not Family.BERNOULLI

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """Nothing to add: the gradient flows through the draw."""
        return Surrogate()

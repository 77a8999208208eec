"""What the relaxed estimators share: one row, whose value is a differentiable function of the logits."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyro_discrete.draws.noise import Perturbed, noise_of
from pyro_discrete.draws.schedules import LearnedTemperature, Temperature, checked_temperature, described
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import PATHWISE, Family

__all__ = [
    "RelaxedEstimator",
    "RelaxedLaw",
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
    relaxed: tuple[int, ...] = (0,)
    may_be_analytic: bool = False

    def __init__(self, temperature: Temperature, hard: bool = True) -> None:
        super().__init__()
        if hard:
            self.refuse_learned("temperature", temperature)
        self.temperature: Temperature = checked_temperature(temperature, type(self).__name__)

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

    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """The weights that a draw of this law gets."""
        # in single precision at least, as networks' logits may be less
        logits = law.logits.to(torch.promote_types(law.logits.dtype, torch.float32))
        return self.weights(logits, step, law.one_hot)

    def draw(self, site: SiteView) -> Draw:
        """One row, differentiable in the logits."""
        return Draw(self.relaxed_value(site.law, site.step).unsqueeze(0))

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """Nothing to add: the gradient flows through the draw."""
        return Surrogate()


class RelaxedLaw(RelaxedEstimator):
    """One that asks the law itself, for its noise or its mean, and so serves structures too."""

    families: frozenset[Family] = PATHWISE | {Family.STRUCTURE}

    @abstractmethod
    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """The weights that a draw of this law gets: a soft vertex, or a hard one with a soft slope."""

    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """The same of categories or bits."""
        return self.relaxed_value(noise_of(logits, one_hot=one_hot), step)

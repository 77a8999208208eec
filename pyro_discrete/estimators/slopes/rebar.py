"""REBAR: the score function, its variance cancelled by a relaxation of itself."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_discrete.draws.schedules import Temperature
from pyro_discrete.estimators.base import Estimator, ScoredDraw
from pyro_discrete.estimators.slopes.conditionally_relaxed import ConditionallyRelaxed, Control, positive_log
from pyro_discrete.families import RELAXABLE, Family, Need

__all__ = [
    "REBAR",
]


class REBAR(ConditionallyRelaxed):
    r"""The score function with a relaxed control variate, conditioned on the hard draw.

    .. math:: \big(f(b) - \eta f(\sigma_t(\tilde z))\big) \nabla \log q(b)
              + \eta \nabla f(\sigma_t(z)) - \eta \nabla f(\sigma_t(\tilde z))

    with `z` the relaxed draw behind the hard draw `b`, and `z~` one more drawn given `b`. Three evaluations (hard,
    relaxed, conditionally relaxed), the model has to accept soft values; unbiased whatever `eta` and the temperature
    are. Both are trained (by the caller's optimiser, like a baseline) on the gradient's own second moment. Downstream
    of a relaxed value relaxable sites take their mean. A program that jumps as a relaxed value moves (a comparison,
    `round`, `argmax`) or drops its slope (`detach`) is refused with `RelaxationError`, as no slope makes up for a jump.
    Serves Bernoulli, Categorical and OneHotCategorical sites, and structures with noise given a value.

    - `temperature`, `eta`: where they start, positive; a schedule leaves nothing of the temperature to learn.
      `learn=False` keeps them there.

    Raises `SettingError` for a setting that is not positive.

    Source: Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein (2017), REBAR: low-variance, unbiased gradient estimates
    for discrete latent variable models.

    >>> from pyro_discrete import REBAR, TraceELBO
    >>> elbo = TraceELBO(REBAR(temperature=0.5))
    """

    name = "rebar"
    summary = "score function with a conditionally relaxed control variate"
    reference = "Tucker et al. 2017"
    evaluations = "3"
    families: frozenset[Family] = RELAXABLE | {Family.STRUCTURE}
    needs: frozenset[Need] = frozenset({Need.NOISE, Need.NOISE_GIVEN, Need.LOG_MASS})
    relaxed: tuple[int, ...] = (1, 2)

    def __init__(self, temperature: Temperature = 0.5, eta: float = 1.0, learn: bool = True) -> None:
        super().__init__(temperature, learn)
        self.log_eta: nn.Parameter = nn.Parameter(positive_log(eta, "eta", "REBAR"), requires_grad=learn)

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(temperature=0.3, eta=0.7, learn=False)]

    def control(self, draw: ScoredDraw, cost: Tensor) -> Control:
        """The relaxed cost times `eta`; `cost` `[3, K, *batch]`, slopes are those of the rows' total costs."""
        eta = self.log_eta.exp().to(cost)
        return Control(eta * cost[2], eta * draw.slopes[1], eta * draw.slopes[2])

"""ReinMax: a straight-through estimator of second order."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.noise import hard_draw
from pyro_discrete.draws.schedules import Temperature, temperature_at
from pyro_discrete.draws.soft_scores import bounded
from pyro_discrete.draws.softening import soften, straight_through
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

__all__ = [
    "ReinMax",
]


class ReinMax(RelaxedEstimator):
    r"""The straight-through estimator with Heun's rule in place of Euler's.

    .. math::
        f'(D) \Big[2\, J\big(\tfrac{\pi_t + D}{2}\big) - \tfrac{1}{2}\, J(\pi)\Big], \quad
        J(p) = \mathrm{diag}(p) - p p^\top, \quad \pi_t = \mathrm{softmax}(\mathrm{logits} / t), \quad D \sim \pi

    At t = 1 it is exact where f is quadratic in each variable (the straight-through estimator: where it is linear), and
    it is one half of the sum of that estimator and of DARN's. Hard forward, so the loss is the discrete objective's.
    One evaluation. A temperature of one or more is recommended: it lowers the variance. Serves Bernoulli,
    Categorical and OneHotCategorical sites, and counts.

    When to use which: hard values leave a program whose categories coincide (a mixture that starts broad) where it is,
    as the exact gradient does; soft ones part them ("The stall" in benchmarks/results/RESULTS.md, with what else
    helps).

    Raises `SettingError` if `temperature` is not positive.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Liu, Dong, Liu, Yu and Gao (2023), Bridging discrete and backpropagation: straight-through and beyond,
    algorithm 2; the two Jacobians as in the authors' code (github.com/microsoft/ReinMax).

    >>> from pyro_discrete import ReinMax, TraceELBO
    >>> elbo = TraceELBO(ReinMax())
    """

    name = "reinmax"
    summary = "straight-through of second order"
    reference = "Liu et al. 2023"

    def __init__(self, temperature: Temperature = 1.0) -> None:
        super().__init__(temperature)

    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """The hard draw, with the two Jacobians' gradient."""
        hard, logits = hard_draw(logits, one_hot=one_hot), bounded(logits)
        detached, temperature = logits.detach(), temperature_at(self.temperature, step)
        pi, pi_t = (soften(detached, t, one_hot=one_hot) for t in (1.0, temperature))
        product = jacobian_product((pi_t + hard) / 2, logits, 2.0, one_hot) - jacobian_product(pi, logits, 0.5, one_hot)
        return straight_through(hard, product)


def jacobian_product(p: Tensor, logits: Tensor, factor: float, one_hot: bool) -> Tensor:
    """Factor J(p) times `logits`, in their shape: its derivative in the logits is factor J(p).

    (Of a Bernoulli's p, J is p (1 - p).) The factor goes with p, as the slope of the cost may be the largest number
    where p is zero.
    """
    scaled = factor * p
    return scaled * (logits - (p * logits).sum(-1, keepdim=True)) if one_hot else scaled * (1 - p) * logits

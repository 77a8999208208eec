"""The gapped straight-through estimator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_discrete.draws.noise import hard_draw
from pyro_discrete.draws.schedules import Temperature, described, temperature_at
from pyro_discrete.draws.soft_scores import bounded
from pyro_discrete.draws.softening import moved, soften, straight_through
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

__all__ = [
    "GappedStraightThrough",
]


class GappedStraightThrough(RelaxedEstimator):
    r"""A hard draw forward; backward, the softmax of logits moved so that the drawn category leads by a gap.

    .. math::
        f'(D)\, \nabla\, \mathrm{softmax}\big((\mathrm{logits} + m_1 - m_2) / t\big), \quad
        m_1 = (\max_j \mathrm{logits}_j - \langle \mathrm{logits}, D \rangle)\, D, \quad
        m_2 = (\mathrm{logits} + g - \max_j \mathrm{logits}_j)_+ \odot (1 - D)

    It agrees with its draw as the straight-through Gumbel-Softmax does (the soft value is largest where D is one), but
    what moves the logits is a function of D: there is no noise beside the draw's own. m_1 and m_2 are held constant.
    One evaluation, biased. Serves Bernoulli, Categorical and OneHotCategorical sites, and counts.

    - `gap`: g, a number of at least 0, or a schedule (or another function) from the step to one.

    Raises `SettingError` for a setting out of range.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Fan, Chi, Rudnicky and Ramadge (2022), Training discrete deep generative models via gapped straight-through
    estimator; m_1 and m_2 as in the authors' code (github.com/chijames/GST, `gst_mover`).

    >>> from pyro_discrete import GappedStraightThrough, TraceELBO
    >>> elbo = TraceELBO(GappedStraightThrough(gap=1.0))
    """

    name = "gapped_straight_through"
    summary = "hard draw forward, backward the softmax of logits moved in its favour"
    reference = "Fan et al. 2022"
    also_known: tuple[str, ...] = ("gst",)

    def __init__(self, temperature: Temperature = 0.65, gap: Temperature = 1.0) -> None:
        super().__init__(temperature)
        self.refuse_learned("gap", gap)
        if not callable(gap) and (isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 <= gap < math.inf):
            raise SettingError(f"GappedStraightThrough: gap={gap!r} given, a number >= 0 or a schedule expected.")
        self.gap = gap

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gap={described(self.gap)}"

    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """The hard draw, with the moved softmax's gradient."""
        hard, logits = hard_draw(logits, one_hot=one_hot), bounded(logits)
        temperature, gap = (temperature_at(t, step) for t in (self.temperature, self.gap))
        with torch.no_grad():
            led = self.lead(logits, hard, gap) if one_hot else self.binary_lead(logits, hard, gap)
        return straight_through(hard, soften(moved(logits, led), temperature, one_hot=one_hot))

    @staticmethod
    def lead(logits: Tensor, hard: Tensor, gap: Tensor | float) -> Tensor:
        """The moved logits `[..., categories]`."""
        largest = logits.amax(-1, keepdim=True)
        return torch.where(hard > 0, largest, logits - (logits + gap - largest).clamp(min=0))

    @staticmethod
    def binary_lead(logits: Tensor, hard: Tensor, gap: Tensor | float) -> Tensor:
        """The same for the categories 0 and 1 with logits 0 and `logits`: the moved difference `[...]`."""
        sign = 2 * hard - 1
        return sign * (sign * logits).clamp(min=gap)

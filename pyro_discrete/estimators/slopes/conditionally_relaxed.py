"""What REBAR and RELAX share: a control variate at a relaxed draw, and at another one given the hard draw."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_discrete.control_variates.moments import second_moment
from pyro_discrete.draws.schedules import Schedule, Temperature, checked_temperature, temperature_at
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import Need

__all__ = [
    "ConditionallyRelaxed",
    "Control",
    "positive_log",
]


LARGEST = 1e4
"""What logits are bounded by: probabilities are zero and one far before, and second derivatives finite still."""


@dataclass(frozen=True)
class Control:
    """A control variate c of relaxed values, at a site's draws.

    - `given`: c at the draw given the hard one, `[K, *batch]`.
    - `slope`, `slope_given`: of its sum over everything, at the relaxed draw and at the one given the hard draw,
      `[K, *batch, *event]`.
    """

    given: Tensor
    slope: Tensor
    slope_given: Tensor


class ConditionallyRelaxed(Estimator):
    r"""The score function with a control variate c of relaxed values, which its slopes make up for.

    .. math:: \big(f(b) - c(\sigma_t(\tilde z))\big) \nabla \log q(b)
              + \nabla c(\sigma_t(z)) - \nabla c(\sigma_t(\tilde z))

    Unbiased for every c and temperature. They are trained on the second moment of the gradient with respect to the
    logits, summed over elements and averaged over particles, costs freed of the subsampling scale.
    """

    auxiliary_adds_up = True
    particles_apart = True

    def __init__(self, temperature: Temperature, learn: bool) -> None:
        super().__init__()
        given = checked_temperature(temperature, type(self).__name__)
        self.schedule: Schedule | Callable[[Any], Any] | None = given if callable(given) else None
        if not callable(given):
            self.log_temperature: nn.Parameter = nn.Parameter(torch.tensor(given).log(), requires_grad=learn)
        self.differentiates_costs = learn

    def temperature_at(self, step: Tensor | int) -> Tensor:
        """The one learned so far, or that of the schedule."""
        if self.schedule is None:
            return self.log_temperature.exp()
        return torch.as_tensor(temperature_at(self.schedule, step))

    @abstractmethod
    def control(self, draw: ScoredDraw, cost: Tensor) -> Control:
        """The control variate; what trains its parameters stays in the graph."""

    def rows(self, site: SiteView) -> int:
        return 1 + len(self.relaxed)

    def draw(self, site: SiteView) -> Draw:
        """Hard, relaxed, and relaxed given the hard one; the latter two are rows where `relaxed` says so."""
        near, temperature = site.bounded(LARGEST), self.temperature_at(site.step).to(site.logits)
        z = near.perturb()
        value = near.read(z)
        given = near.perturb_given(value)
        soft, soft_given = (near.soft(each, temperature) for each in (z, given))
        path, path_given = (near.soft(each, temperature.detach()) for each in (z, given))
        extra = {"soft": soft, "soft_given": soft_given, "path": path, "path_given": path_given}
        extra["possible"] = site.possible
        if self.differentiates_costs:
            has_mean = Need.MARGINALS in site.needs_met
            extra["score"] = site.vertex(value) - site.mean().detach() if has_mean else site.score(value)
        rows = torch.stack([value, soft, soft_given]) if self.relaxed else value.unsqueeze(0)
        return Draw(rows, logits=site.logits, extra=extra)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[rows, K, *batch]`."""
        control = self.control(draw, cost)
        # a value of probability zero is never mixed in, and has a slope of minus infinity
        slopes = (torch.where(draw.extra["possible"], s, 0.0) for s in (control.slope, control.slope_given))
        control = Control(control.given, *slopes)
        signal = cost[0] - control.given
        # along paths that lead to the logits alone: the temperature is trained by the auxiliary loss
        pathwise = (control.slope.detach() * draw.extra["path"]) - (
            control.slope_given.detach() * draw.extra["path_given"]
        )
        loss = draw.score * signal.detach() + pathwise.reshape(*signal.shape, -1).sum(-1)
        return Surrogate(loss, self._auxiliary(draw, signal, control))

    def _auxiliary(self, draw: ScoredDraw, signal: Tensor, control: Control) -> Tensor | None:
        """The second moment of the estimate of the gradient in the logits."""
        if draw.logits is None or not draw.logits.requires_grad or not self.differentiates_costs:
            return None
        soft, slopes = (draw.extra["soft"], draw.extra["soft_given"]), (control.slope, -control.slope_given)
        (path,) = torch.autograd.grad(soft, draw.logits, slopes, create_graph=True)
        score = draw.extra["score"]
        estimate = signal.reshape(signal.shape + (1,) * (score.dim() - signal.dim())) * score + path
        moment = second_moment(estimate / draw.scale, self.parameters())
        return None if moment is None else moment / signal.shape[0]


def positive_log(number: float, called: str, where: str) -> Tensor:
    """The logarithm of a setting that has to be positive and finite; `SettingError` if it is not."""
    if not 0 < number < float("inf"):
        raise SettingError(f"{where}: {called}={number} given, a positive number expected.")
    return torch.tensor(number).log()

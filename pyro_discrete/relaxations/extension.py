"""A discrete distribution whose log-mass is extended linearly to soft values, and whose draws may be soft."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Multinomial, OneHotCategorical, constraints

from pyro_discrete.draws.soft_scores import Point, bounded, expectation, log_density
from pyro_discrete.draws.softening import relaxed_draw
from pyro_discrete.errors import UnsupportedSiteError
from pyro_discrete.relaxations.forms import log_masses, one_hot_form, program_value, rebuilt
from pyro_discrete.relaxations.soft_index import SoftBit, SoftIndex

__all__ = ["Relaxed", "extended"]


class Relaxed(TorchDistribution):
    """A discrete distribution that scores soft values, and draws them if it has a temperature.

    The log-mass is `v * logits - log(1 + exp(logits))` for a Bernoulli, the sum over categories of `v * log p` for a
    OneHotCategorical, and the sum over its values of weight times log-mass for a soft index (a Categorical, or a
    count): exact at hard values, linear between them. A Multinomial's is its own formula, at counts that are no
    integers. With a temperature, draws are relaxed and differentiable (`hard=True`: hard in the forward pass only);
    without one, they are the base distribution's own.

    - `point`: where it is scored instead of at the value it is given, or None.
    - `site`: the site's name, for messages. `infer`: where a count of infinite support states its `"truncation"`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: Distribution,
        temperature: float | None = None,
        hard: bool = False,
        site: str = "?",
        infer: Mapping[str, Any] | None = None,
        point: Point | None = None,
    ) -> None:
        self.point = point
        self.base, self.temperature, self.hard, self.site, self.infer = base, temperature, hard, site, infer or {}
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.temperature is not None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return False

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        if isinstance(self.base, OneHotCategorical):
            return constraints.simplex
        return constraints.unit_interval if isinstance(self.base, Bernoulli) else self.base.support  # type: ignore[return-value]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Relaxed:
        base = self.base.expand(torch.Size(batch_shape))
        return Relaxed(base, self.temperature, self.hard, self.site, self.infer, self.point)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if self.temperature is None:
            return self.base.sample(torch.Size(sample_shape))
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if self.temperature is None:
            raise RuntimeError("a Relaxed distribution without a temperature draws hard values: call sample()")
        form = one_hot_form(self.base, self.infer, self.site)
        logits = form.base_dist.logits if isinstance(form, Independent) else form.logits
        logits = bounded(logits).expand(torch.Size(sample_shape) + logits.shape)
        one_hot = not isinstance(self.base, Bernoulli)
        return program_value(
            self.base, relaxed_draw(logits, self.temperature, one_hot=one_hot, hard=self.hard), self.site
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*batch]`, for soft or hard values `[*batch, *event]`."""
        base: Any = self.base
        if self.point is not None:
            return self._at_point(base, self.point)
        if isinstance(value, SoftBit):
            value = value.expectation()
        if isinstance(value, SoftIndex):
            return expectation(value.weights, log_masses(base, value.values))
        if isinstance(base, Bernoulli):
            logits = bounded(base.logits)
            return value * logits - F.softplus(logits)
        if isinstance(base, OneHotCategorical):
            return (value * bounded(base.logits)).sum(-1)
        if isinstance(base, Multinomial):
            orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
            return orders + (value * bounded(base.logits)).sum(-1)
        return base.log_prob(value)

    def _at_point(self, base: Any, point: Point) -> Tensor:
        one_hot, tensor = not isinstance(base, Bernoulli), point.tensor
        if isinstance(base, Multinomial):
            raise UnsupportedSiteError(
                f"Site {self.site!r} is Multinomial, whose log-mass is extended to soft values and has no other "
                "treatment here. Leave kl at 'auto' for it, or write GumbelSoftmax(kl='linear')."
            )
        if one_hot and not isinstance(base, OneHotCategorical):  # integers
            values = torch.arange(tensor.shape[-1], device=tensor.device, dtype=tensor.dtype)
            logits = log_masses(base, values)
        else:
            logits = base.logits
        if point.temperature is not None:
            return log_density(tensor, logits, point.temperature, one_hot=one_hot)
        if one_hot:
            return expectation(tensor, logits)
        return tensor * bounded(logits) - F.softplus(bounded(logits))


def extended(fn: Any, point: Point | None = None) -> Any:
    """`fn`, scoring soft values too, or scored at `point` whatever its value; its own draws stay hard."""
    return rebuilt(fn, partial(Relaxed, point=point))

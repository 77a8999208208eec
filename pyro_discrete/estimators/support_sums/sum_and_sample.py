"""The most likely values summed exactly, the rest sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like
from pyro_discrete.errors import SettingError, is_whole, shown
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.support_sums.joint_values import check_support, index_of, positive, take
from pyro_discrete.families import FINITE, Need

__all__ = [
    "SumAndSample",
]


class SumAndSample(Estimator):
    r"""Exact over the set C of the k most likely values, sampled over the others.

    .. math::
        \sum_{c \in C} \nabla q(c)\, (f(c) - b) + q(\bar C)\, (f(v) - b)\, \nabla \log q(v), \qquad v \sim q(\cdot \mid
        \bar C)

    Serves sites of finite support, is unbiased, and costs k + 1 evaluations; the fewer values carry the mass, the
    better it is, and from k = (number of values) - 1 on it is exact. The baseline b is the mean of f under q restricted
    to C, which is independent of v; it can be switched off. The site's ordinary draw z is one of the k + 1 rows: it is
    v where it lies outside C, and otherwise stands for its own term of the sum. If all values are about equally likely,
    `unordered_set` or `rloo` with as many evaluations is better.

    - `k`: how many values are summed; clipped to the support.
    - `max_support`: the largest number of joint values that are listed.
    - `max_rows`: the most evaluations a particle where a plate's elements share later terms; `SharedTermsError` beyond.

    It changes all elements of a plate together; where these share later terms, each has k rows of its own, the others
    held at the draw: `1 + elements x k` evaluations.
    Raises `EnumerationError` above `max_support`, `SettingError` for a setting out of range.

    Source: Liu, Regier, Tripuraneni, Jordan and McAuliffe (2019), Rao-Blackwellized stochastic gradients for discrete
    distributions; compared in Kool, van Hoof and Welling (2020).

    >>> from pyro_discrete import SumAndSample, TraceELBO
    >>> elbo = TraceELBO(SumAndSample(k=3))
    """

    name = "sum_and_sample"
    summary = "exact over the k most likely values, sampled over the rest"
    reference = "Liu et al. 2019"
    also_known: tuple[str, ...] = ("sum_sample",)
    evaluations = "k + 1"
    families = FINITE
    needs: frozenset[Need] = frozenset({Need.SUPPORT})
    separable = True

    def __init__(self, k: int = 2, baseline: bool = True, max_support: int = 2**16, max_rows: int = 4096) -> None:
        super().__init__()
        if not is_whole(k):
            raise SettingError(f"SumAndSample: k={k!r} given, at least one value to sum over expected.")
        if max_support < 1:
            raise SettingError(f"SumAndSample: max_support={max_support} given, a positive number expected.")
        if not is_whole(max_rows, 2):
            raise SettingError(
                f"SumAndSample: max_rows={shown(max_rows)} given, at least 2 expected (a draw and another value)."
            )
        self.max_rows = max_rows
        self.k: int = k
        self.baseline: bool = baseline
        self.max_support: int = max_support

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(k=1), cls(k=1, baseline=False), cls(k=5)]

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def rows(self, site: SiteView) -> int:
        return 1 + min(self.k, check_support(site, self.name, self.max_support, "max_support") - 1)

    def draw(self, site: SiteView) -> Draw:
        """The draw z, then C with z's place in it (if it has one) taken by v: all of C and v once."""
        z, support = site.sample(), site.support()
        log_q = site.log_mass(support)
        mass = log_q.detach().double()
        summed = mass.topk(min(self.k, len(support) - 1), 0).indices  # [k, K, *batch]
        outside = mass.scatter(0, summed, float("-inf"))
        drawn = index_of(support, z, site.event_dim)
        at_drawn = summed == drawn
        v = torch.where(at_drawn.any(0), (outside + gumbel_like(mass)).argmax(0), drawn)
        index = torch.cat([drawn.unsqueeze(0), torch.where(at_drawn, v, summed)])
        is_v = torch.cat([~at_drawn.any(0, keepdim=True), at_drawn])
        weight = torch.where(is_v, outside.logsumexp(0), mass.gather(0, index)).exp()
        value = torch.cat([z.unsqueeze(0), take(support, index[1:], site.event_dim)])
        return Draw(value).with_rows(weight=weight.to(log_q.dtype), is_v=is_v, log_q=log_q.gather(0, index))

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[k + 1, K, *batch]`; a weight is q(c) for a value of C, and the mass outside C for v."""
        weight, is_v, log_q = map(draw.of_rows, ("weight", "is_v", "log_q"))
        log_q, cost = positive(weight, log_q, cost)
        if self.baseline and len(cost) > 1:
            inside = torch.where(is_v, 0.0, weight)
            cost = cost - (inside * cost).sum(0) / inside.sum(0)
        return Surrogate((weight * cost * log_q).sum(0))

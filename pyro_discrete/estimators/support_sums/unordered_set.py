"""The unordered set estimator: k draws without replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like, log_completion
from pyro_discrete.errors import SettingError, is_whole, shown
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.support_sums.joint_values import check_support, index_of, positive, take
from pyro_discrete.families import FINITE, Need

__all__ = [
    "UnorderedSet",
]


LARGEST_K = 12
"""2^k subsets of the k draws are summed over."""

IMPOSSIBLE = -700.0
"""What stands for the log-mass of a value of probability zero, so that logarithms stay finite."""


class UnorderedSet(Estimator):
    r"""k draws without replacement, each weighted by how likely the others are given it.

    .. math::
        \sum_{s \in S} \nabla q(s)\, R(S, s) \Big(f(s) - \sum_{s' \in S} q(s')\, R^{\setminus s}(S, s')\, f(s')\Big),
        \qquad R(S, s) = \frac{p^{\setminus s}(S \setminus s)}{p(S)}

    p(S) is the probability that k draws without replacement are the set S, in any order, and :math:`p^{\setminus s}`
    the same with s removed beforehand; the inner sum is the built-in baseline. Serves sites of finite support, is
    unbiased at any k, and exact once k reaches the support: it is at its best where q is concentrated, and never draws
    a value twice. The weights `q(s) R(S, s)` sum to one. Cost: k evaluations, and a sum over 2^k subsets (not k!
    orders) for the ratios, in float64 and logarithms, with probabilities of complements summed and not subtracted.

    - `k`: how many values are drawn, 2 to 12; clipped to the support. (With one draw it would be `reinforce`.)
    - `max_support`: the largest number of joint values that are listed.
    - `max_rows`: the most evaluations a particle where a plate's elements share later terms; `SharedTermsError` beyond.

    It changes all elements of a plate together; where these share later terms, each has k - 1 rows of its own, the
    others held at the draw: `1 + elements x (k - 1)` evaluations.
    Raises `EnumerationError` above `max_support`, `SettingError` for a setting out of range.

    Source: Kool, van Hoof and Welling (2020), Estimating gradients for discrete random variables by sampling without
    replacement.

    >>> from pyro_discrete import TraceELBO, UnorderedSet
    >>> elbo = TraceELBO(UnorderedSet(k=4))
    """

    name = "unordered_set"
    summary = "k draws without replacement, with a built-in baseline"
    reference = "Kool et al. 2020"
    also_known: tuple[str, ...] = ("without_replacement", "us")
    evaluations = "k"
    families = FINITE
    needs: frozenset[Need] = frozenset({Need.SUPPORT})
    separable = True

    def __init__(self, k: int = 4, baseline: bool = True, max_support: int = 2**16, max_rows: int = 4096) -> None:
        super().__init__()
        if not is_whole(k, 2) or k > LARGEST_K:
            raise SettingError(f"UnorderedSet: k={k!r} given, a whole number from 2 to {LARGEST_K} expected.")
        if max_support < 1:
            raise SettingError(f"UnorderedSet: max_support={max_support} given, a positive number expected.")
        if not is_whole(max_rows, 2):
            raise SettingError(
                f"UnorderedSet: max_rows={shown(max_rows)} given, at least 2 expected (a draw and another value)."
            )
        self.max_rows = max_rows
        self.k: int = k
        self.baseline: bool = baseline
        self.max_support: int = max_support

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(k=2), cls(k=3, baseline=False)]

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def rows(self, site: SiteView) -> int:
        return min(self.k, check_support(site, self.name, self.max_support, "max_support"))

    def draw(self, site: SiteView) -> Draw:
        """The site's draw, then the largest of the other values' Gumbel-perturbed log-masses: the next k - 1 draws."""
        first, support = site.sample(), site.support()
        log_q = site.log_mass(support)
        mass = log_q.detach().double().clamp(min=IMPOSSIBLE)
        index = index_of(support, first, site.event_dim).unsqueeze(0)
        perturbed = (mass + gumbel_like(mass)).scatter(0, index, float("-inf"))
        index = torch.cat([index, perturbed.topk(min(self.k, len(support)) - 1, 0).indices])
        chosen = mass.gather(0, index)
        outside = mass.scatter(0, index, float("-inf")).logsumexp(0)
        value = torch.cat([first.unsqueeze(0), take(support, index[1:], site.event_dim)])
        completion = log_completion(chosen, outside)  # [2^k, K, *batch], of every subset
        return Draw(value).with_rows(log_p=chosen, completion=completion, log_q=log_q.gather(0, index))

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[k, K, *batch]`."""
        log_p, completion, log_q = map(draw.of_rows, ("log_p", "completion", "log_q"))
        one = 2 ** torch.arange(len(cost), device=cost.device)
        weight = self.weights(log_p, completion[one] - completion[0]).to(cost)
        weight = torch.where(log_q.detach() > IMPOSSIBLE, weight, 0.0)
        log_q, cost = positive(weight, log_q, cost)
        if self.baseline:
            both = completion[one.unsqueeze(1) | one]  # for s' = s this leaves R = 1
            share = (log_p + both - completion[one].unsqueeze(1)).exp().to(cost)  # [s, s', K, *batch], summing to one
            cost = (share * (cost.unsqueeze(1) - cost)).sum(1)
        return Surrogate((weight * cost * log_q).sum(0))

    def weights(self, log_p: Tensor, log_ratio: Tensor) -> Tensor:
        """q(s) R(S, s), which sum to one over the set; both arguments and the result `[k, K, *batch]`."""
        return (log_p + log_ratio).exp()

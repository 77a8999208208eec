"""Rankings, and ordered lists of the first items of one, by a race of the items."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.structure import Structure, first_element, float_or_inf
from pyro_discrete.distributions.supports import Lists
from pyro_discrete.draws.gumbel import gumbel_like, truncated, uniform_like
from pyro_discrete.draws.log_space import LARGEST, log_cumsum_exp
from pyro_discrete.draws.soft_scores import log_left
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError, is_whole

__all__ = ["PlackettLuce"]


class PlackettLuce(Structure):
    r"""Items one after the other, each from what is left in proportion to exp(logit): a ranking, or its first places.

    .. math:: \log p(b) = \sum_i \Big(l_{b_i} - \log \sum_{j \notin b_1 \ldots b_{i-1}} e^{l_j}\Big)

    - `logits` `[*batch, n]`. `length`: how many places are listed, by default all n.
    - A value: the items by place, integers `[*batch, length]`. Its vertex: `[*batch, place, item]`.

    Raises `SettingError` for a `length` outside of 1 to n and, under validation, for fewer finite logits than places.

    Source: Plackett (1975); Luce (1959); the race of Gumbels: Yellott (1977); its noise given the ranking, by waiting
    times: Gadetsky et al. (2020), Low-variance black-box gradient estimates for the Plackett-Luce distribution; soft
    values: Prillo and Eisenschlos (2020), SoftSort.

    >>> d = PlackettLuce(torch.tensor([0.0, -50.0, 50.0]))
    >>> d.sample()
    tensor([2, 0, 1])
    >>> PlackettLuce(torch.tensor([0.5, 0.3, 0.2]).log()).log_prob(torch.tensor([1, 0, 2])).exp()  # 0.3 * 0.5 / 0.7
    tensor(0.2143)
    """

    def __init__(self, logits: Tensor, length: int | None = None, *, validate_args: bool | None = None) -> None:
        self._check_shape(logits)
        n = logits.shape[-1]
        length = n if length is None else length
        if not is_whole(length) or length > n:
            raise SettingError(f"PlackettLuce: length={length!r} given, 1 to {n} (the number of items) expected.")
        self.length = length
        super().__init__(logits, validate_args=validate_args)

    def _check_logits(self) -> None:
        super()._check_logits()
        few = (self.logits > -math.inf).sum(-1) < self.length
        if bool(few.any()):
            raise SettingError(
                f"PlackettLuce: fewer than {self.length} logits above -inf{first_element(few)} given: the order of "
                f"items that cannot be drawn has no law. {self.length} finite ones expected."
            )

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return torch.Size((self.length,))

    def _settings(self) -> dict[str, Any]:
        return {"length": self.length}

    @property
    def n(self) -> int:
        """The number of items."""
        return self.logits.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Lists:
        return Lists(self.n, self.length)

    @property
    def cardinality(self) -> float:
        n, k = self.n, self.length
        return float_or_inf(math.lgamma(n + 1) - math.lgamma(n - k + 1), lambda: math.perm(n, k))

    def _support_list(self) -> Tensor:
        return torch.tensor(list(itertools.permutations(range(self.n), self.length)))

    @property
    def vertex_shape(self) -> torch.Size:
        return torch.Size((self.length, self.n))

    @property
    def possible(self) -> Tensor:
        return (self.logits > -math.inf).unsqueeze(-2).expand(self.batch_shape + self.vertex_shape)

    def vertex(self, value: Tensor) -> Tensor:
        return one_hot_vector(value, self.logits)

    def value_of(self, vertex: Tensor) -> Tensor:
        return vertex.argmax(-1)

    def _floored(self) -> Tensor:
        """The logits, those of -inf far below all others."""
        finite = self.logits > -math.inf
        least = torch.where(finite, self.logits, math.inf).detach().amin(-1, keepdim=True)
        return torch.where(finite, self.logits, least - LARGEST)

    def _complete(self, value: Tensor) -> Tensor:
        """All items, `[..., n]`: those listed, then the others."""
        value = value.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        if self.length == self.n:
            return value
        taken = torch.zeros(value.shape[:-1] + (self.n,), device=value.device).scatter(-1, value, 1.0)
        return torch.cat([value, taken.argsort(dim=-1, stable=True)[..., : self.n - self.length]], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        order = self._complete(value.long())
        logits = self._floored().expand(order.shape).gather(-1, order)
        left = log_cumsum_exp(logits.flip(-1)).flip(-1)
        total = (logits - left)[..., : self.length].sum(-1)
        impossible = (self.logits == -math.inf).expand(order.shape).gather(-1, order)[..., : self.length]
        return torch.where(impossible.any(-1), -math.inf, total)

    def log_mass(self, vertex: Tensor) -> Tensor:
        """At soft places what is left of an item is what the place itself and later ones (or none) have of it."""
        left = vertex.flip(-2).cumsum(-2).flip(-2)
        if self.length < self.n:
            left = left + (1 - vertex.sum(-2, keepdim=True)).clamp(min=0)
        logits = self._floored().unsqueeze(-2)
        remaining = log_left(left, logits)
        impossible = (vertex > 0) & ~self.possible
        return torch.where(impossible.any(-1).any(-1), -math.inf, ((vertex * logits).sum(-1) - remaining).sum(-1))

    def _draw(self, shape: torch.Size) -> Tensor:
        return self.read(self.logits + gumbel_like(self.logits.expand(shape + (self.n,))))

    def perturb(self) -> Tensor:
        logits = self._floored()
        return logits + gumbel_like(logits)

    def read(self, noise: Tensor) -> Tensor:
        return noise.argsort(dim=-1, descending=True, stable=True)[..., : self.length]

    def perturb_given(self, value: Tensor) -> Tensor:
        """The i-th item arrives after i exponential waits, each at the rate of all that have not arrived."""
        order = self._complete(value.long())
        logits = self._floored().expand(order.shape).gather(-1, order)
        log_e = (-uniform_like(logits).log()).log()
        left = log_cumsum_exp(logits.flip(-1)).flip(-1)
        log_time = log_cumsum_exp((log_e - left)[..., : self.length])
        after = truncated((logits - log_e)[..., self.length :], -log_time[..., -1:])
        return torch.empty_like(logits).scatter(-1, order, torch.cat([-log_time, after], -1))

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        top = noise.sort(-1, descending=True).values[..., : self.length]
        return (-(top.unsqueeze(-1) - noise.unsqueeze(-2)).abs() / temperature).softmax(-1)

    def argmax(self, scores: Tensor) -> Tensor:
        return self.read(scores)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor([0.3, -0.9, 1.1, 0.2, -0.4], dtype=torch.float64)
        masked = logits.index_fill(0, torch.tensor([1]), -math.inf)
        batch = torch.stack([logits[:3], logits[2:]])
        return [cls(logits[:4]), cls(logits, 2), cls(masked, 2), cls(batch)]

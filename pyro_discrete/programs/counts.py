"""Counts up to a last value: what is summed of a Poisson, a geometric or a negative binomial, and what is beyond."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import GammaPoisson, TorchDistribution, ZeroInflatedDistribution
from torch import Tensor
from torch.distributions import Binomial, Geometric, NegativeBinomial, Poisson, constraints
from torch.distributions.utils import logits_to_probs

__all__ = [
    "CountUpTo",
    "log_mass_beyond",
]


def log_mass_beyond(fn: Any, last: int) -> Tensor | None:
    r"""An upper bound of log P(n > last) `[*batch]`, in double precision; None for a kind of which none is known.

    Known are torch's and Pyro's own (a class derived from them may have another tail). Poisson and negative binomial
    masses fall from a value `m` on at least by the ratio :math:`r = p(m + 1) / p(m)`, or by the limit of such ratios
    where these grow: the mass from `m` on is at most :math:`p(m) / (1 - r)`.
    """
    if not type(fn).__module__.startswith(("torch.distributions.", "pyro.distributions.")):
        return None
    if isinstance(fn, ZeroInflatedDistribution):
        beyond = log_mass_beyond(fn.base_dist, last)
        return None if beyond is None else beyond + torch.log1p(-fn.gate.detach().double())
    m = last + 1.0
    if isinstance(fn, Poisson):
        rate = fn.rate.detach().double()
        log_p = m * rate.log() - rate - math.lgamma(m + 1)
        return _geometric_tail(log_p, rate / (m + 1))
    if isinstance(fn, Geometric):
        return m * torch.log1p(-fn.probs.detach().double())
    if isinstance(fn, NegativeBinomial):
        probs = logits_to_probs(fn.logits.detach().double(), is_binary=True)
        return _negative_binomial_tail(fn.total_count.detach().double(), probs, m)
    if isinstance(fn, GammaPoisson):
        probs = 1 / (1 + fn.rate.detach().double())
        return _negative_binomial_tail(fn.concentration.detach().double(), probs, m)
    return None


def _negative_binomial_tail(total: Tensor, probs: Tensor, m: float) -> Tensor:
    log_p = torch.lgamma(total + m) - torch.lgamma(total) - math.lgamma(m + 1)
    log_p = log_p + total * torch.log1p(-probs) + m * probs.log()
    return _geometric_tail(log_p, probs * ((m + total) / (m + 1)).clamp(min=1))


def _geometric_tail(log_p: Tensor, ratio: Tensor) -> Tensor:
    """The log of a geometric series from a first term, at most 0; 0 where it would not converge yet."""
    falls = ratio < 1
    tail = log_p - torch.log1p(-torch.where(falls, ratio, 0.0))
    return torch.where(falls, tail, 0.0).clamp(max=0.0)


class CountUpTo(TorchDistribution):
    """A count's distribution over 0 to `last`, each value with its own probability.

    - `cut`: whether the values beyond are taken out of the distribution: the others' probabilities are divided by what
      they add up to, and draws are from them alone. Else they stay as they are, and add up to less than one.
    - `ends`: "stated" for a last value that the site states, "open" for one that was found, "" where none is needed (a
      Binomial, whose values beyond its own number of trials have no probability).
    - `ledger`: where it is noted what may be left out: see `pyro_discrete.sums.counts`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, last: int, *, cut: bool = False, ends: str = "", name: str = "", ledger: Any = None):
        self.fn: Any = fn
        self.last: int = last
        self.cut: bool = cut
        self.ends: str = ends
        self.name: str = name
        self.ledger: Any = ledger
        super().__init__(fn.batch_shape, torch.Size(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.integer_interval(0, self.last)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return (self._masses().exp() * self._values().reshape(-1, *(1,) * len(self.batch_shape))).sum(0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CountUpTo:
        made = {"cut": self.cut, "ends": self.ends, "name": self.name, "ledger": self.ledger}
        return CountUpTo(self.fn.expand(batch_shape), self.last, **made)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        if not self.ends:
            return self.fn.sample(shape)
        with torch.no_grad():
            logits = self._masses().movedim(0, -1)
            index = torch.distributions.Categorical(logits=logits, validate_args=False).sample(shape)
            return self._values()[index]

    def log_prob(self, value: Tensor) -> Tensor:
        return self._each(value) - (self._masses(False).logsumexp(0) if self.cut else 0.0)

    def log_beyond(self) -> Tensor | None:
        """See `log_mass_beyond`."""
        return log_mass_beyond(self.fn, self.last)

    def _each(self, value: Tensor) -> Tensor:
        if self.ends == "open" and not self.cut:  # another run of the sum may go further
            return self.fn.log_prob(value)
        own = self.fn.total_count if isinstance(self.fn, Binomial) else self.last
        inside = value <= own
        found = self.fn.log_prob(torch.where(inside, value, 0.0))
        return torch.where(inside, found, -math.inf)

    def _masses(self, normal: bool = True) -> Tensor:
        """The log-probability of each value, `[values, *batch]`."""
        found = self._each(self._values().reshape(-1, *(1,) * len(self.batch_shape)))
        return found.log_softmax(0) if normal else found

    def _values(self) -> Tensor:
        like = self.fn.mean
        return torch.arange(self.last + 1, dtype=like.dtype, device=like.device)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self._values().reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(len(values), *self.batch_shape) if expand else values

"""The discrete sites of a guide made from a model: the numbers that each has, and its distribution by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from pyro_discrete.errors import SettingError, UnsupportedSiteError
from pyro_discrete.families import Family
from pyro_discrete.posterior.mixtures import marginals_of
from pyro_discrete.posterior.modes import modes
from pyro_discrete.programs.laws import parameter_dims
from pyro_discrete.programs.sites import base_distribution, element_support, family_of
from pyro_discrete.relaxations.relaxed_distribution import TRUNCATION, log_masses, rebuilt

__all__ = [
    "Table",
    "VariationalSite",
]


class _Listed(constraints.Constraint):
    """One of some values."""

    is_discrete = True

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def check(self, value: Tensor) -> Tensor:
        return (value.unsqueeze(-1) == self.values).any(-1)


class Table(TorchDistribution):
    """One of the `values` `[K]`, in ascending order, with probabilities softmax(`logits`), `[*batch, K]`.

    It is to numbers, such as counts, what a Categorical is to the integers from 0.

    >>> table = Table(torch.tensor([0.0, 2.0, 5.0]), torch.tensor([0.0, 0.0, 1.0]))
    >>> table.enumerate_support().tolist(), round(table.log_prob(torch.tensor(5.0)).exp().item(), 3)
    ([0.0, 2.0, 5.0], 0.576)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, values: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.values = values
        self.logits = logits
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:  # type: ignore[override]
        return _Listed(self.values)

    @lazy_property
    def probs(self) -> Tensor:
        """`[*batch, K]`."""
        return self.logits.softmax(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Table:
        return Table(self.values, self.logits.expand(*batch_shape, len(self.values)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.values[torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each value; minus infinity for one that is not listed."""
        there = value.unsqueeze(-1) == self.values
        logits = self.logits.log_softmax(-1)
        there, logits = torch.broadcast_tensors(there, logits)
        found = logits.gather(-1, there.long().argmax(-1, keepdim=True)).squeeze(-1)
        return found.masked_fill(~there.any(-1), -torch.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


@dataclass(frozen=True)
class VariationalSite:
    """A discrete site of the model, and how many numbers the guide has for one element of it.

    - `base_event` is the event shape of one element below `.to_event`; `copies` the shape of the independent elements.
    - `values` `[K]` are a count's values; None for a Bernoulli, a Categorical, a OneHotCategorical or a structure.
    - `numbers`: the shape of one element's logits: `(K,)` for categories and counts, `()` for a Bernoulli, that of its
      own logits for a structure.
    """

    name: str
    fn: Any
    plates: tuple[Any, ...]
    infer: dict[str, Any]
    family: Family
    copies: tuple[int, ...]
    numbers: tuple[int, ...]
    values: Tensor | None

    @classmethod
    def of(cls, msg: Any, names: Collection[str]) -> VariationalSite:
        """The guide's part for a latent discrete site of the model's trace, one of those with the `names`.

        Raises `UnsupportedSiteError` where the values are not finitely many and no truncation is stated.
        """
        name, fn = msg["name"], msg["fn"]
        base, family = base_distribution(fn), family_of(fn)
        copied = fn.event_dim - len(base.event_shape)
        values = None
        if family is Family.BERNOULLI:
            numbers = ()
        elif family in (Family.CATEGORICAL, Family.ONE_HOT, Family.STRUCTURE):
            numbers = tuple(base.logits.shape[base.logits.dim() - parameter_dims(base) :])
        else:
            values = _values(name, base, msg["infer"])
            numbers = (len(values),)
        plates = tuple(sorted((f for f in msg["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim))
        infer = {key: msg["infer"][key] for key in ("_markov_depth", "estimator") if key in msg["infer"]}
        if "_markov_scope" in msg["infer"]:
            # Which earlier sites pyro.markov keeps in sight is a matter of names, and holds in the guide as well.
            scope = msg["infer"]["_markov_scope"]
            infer["_markov_scope"] = Counter({name: depth for name, depth in scope.items() if name in names})
        assert family is not None
        return cls(name, fn, plates, infer, family, tuple(fn.event_shape[:copied]), numbers, values)

    @property
    def event_dim(self) -> int:
        """Number of event dims of the logits."""
        return len(self.copies) + len(self.numbers)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one element of the batch."""
        return self.copies + self.numbers

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the logits of all data: batch dims of subsampled plates have their full size."""
        batch = list(self.fn.batch_shape)
        for frame in self.plates:
            if len(batch) >= -frame.dim and frame.size > 0:  # pyro.plate("data") states none: it is the batch's
                batch[frame.dim] = frame.full_size or frame.size
        return (*batch, *self.event_shape)

    def prior_logits(self) -> Tensor:
        """The model's own logits in the run that made the guide, `[*batch, *event]`."""
        base = base_distribution(self.fn)
        logits = base.logits if self.values is None else log_masses(base, self.values)
        return logits.detach().expand((*self.fn.batch_shape, *self.event_shape)).clamp(-10.0, 10.0)

    def base(self, logits: Tensor) -> Any:
        """The distribution of one element, of logits `[*batch, *event]`."""
        if self.values is not None:
            return Table(self.values.to(logits.device), logits)
        if self.family is Family.BERNOULLI:
            return dist.Bernoulli(logits=logits)
        if self.family is Family.STRUCTURE:
            return base_distribution(self.fn).of_free(logits)
        return (dist.Categorical if self.family is Family.CATEGORICAL else dist.OneHotCategorical)(logits=logits)

    def distribution(self, logits: Tensor, fn: Any) -> Any:
        """The guide's distribution, under the same `.to_event` and `.mask` as the model's `fn` in the present run."""
        return rebuilt(fn, lambda _: self.base(logits))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of a one, `[*batch, *event]`, for a Bernoulli; of every value, in the last dim, for others.

        Of a structure those of each number of its value by itself.
        """
        if self.family is Family.STRUCTURE:
            return marginals_of(self.base(logits)).probs
        return logits.softmax(-1) if self.numbers else logits.sigmoid()

    def quantile(self, logits: Tensor, quantile: float) -> Tensor | None:
        """The least value whose cumulative probability reaches the quantile; None for categories, without order."""
        if self.family is Family.BERNOULLI:
            return (logits.sigmoid() > 1 - quantile).to(logits.dtype)
        if self.values is None:  # categories and structures
            return None
        reached = logits.softmax(-1).cumsum(-1) >= quantile - 1e-6
        return self.values.to(logits.device)[reached.long().argmax(-1)]

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable value of each element, in the shape of the site's values."""
        if self.family is Family.BERNOULLI:
            return (logits > 0).to(logits.dtype)
        if self.family is Family.STRUCTURE:
            return modes(self.base(logits))
        best = logits.argmax(-1)
        if self.values is not None:
            return self.values.to(logits.device)[best]
        if self.family is Family.CATEGORICAL:
            return best
        return torch.nn.functional.one_hot(best, *self.numbers).to(logits.dtype)


def _values(name: str, base: Any, infer: Any) -> Tensor:
    """The values of a site that is neither Bernoulli nor categorical: its support, or the counts up to a bound."""
    if getattr(base, "has_enumerate_support", False) and not base.event_shape:
        try:
            return element_support(base)
        except NotImplementedError:
            pass
    largest = infer.get(TRUNCATION)
    if largest is None or base.event_shape:
        raise UnsupportedSiteError(
            f"Site {name!r} is {type(base).__name__}, for whose values this guide has no table. For a count, "
            f'state the largest one at the site: infer={{"{TRUNCATION}": 20}}; otherwise leave it out of this guide by '
            "poutine.block and write its guide yourself."
        )
    if isinstance(largest, bool) or not isinstance(largest, int) or largest < 1:
        raise SettingError(
            f"Site {name!r}: infer={{{TRUNCATION!r}: {largest!r}}} given; the largest count, a whole number of at "
            "least one, is expected."
        )
    return torch.arange(largest + 1, dtype=base.mean.dtype, device=base.mean.device)

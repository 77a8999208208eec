"""How a site is enumerated: its joint support, its score without mask, and the size of the table it makes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.errors import EnumerationError, SiteMatchError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    family_of,
    is_latent,
    joint_support,
    why_not_enumerable,
    without_mask,
)

__all__ = [
    "Marginalise",
    "check_table",
    "mark_for_enumeration",
    "refuse_unguided",
]


def check_table(msg: Any, settings: Enumerate, marginal: bool) -> None:
    """Raise `EnumerationError` if a site's table is larger than `settings` allow, earlier sites' dims included."""
    fn = msg["fn"]
    elements = cardinality(fn) * math.prod(fn.shape())
    if elements > settings.max_elements:
        remedy = (
            "Draw it in the guide too, declare independent dims as a pyro.plate, or put chains in pyro.markov."
            if marginal
            else "Use 'rloo' or 'nvil', put chains in pyro.markov, or enumerate fewer sites."
        )
        raise EnumerationError(
            f"Enumerating site {msg['name']!r} needs a table of {elements:.3g} elements ({cardinality(fn):.3g} "
            f"values by shape {tuple(fn.shape())}, enumerated dims of earlier sites included); at most "
            f"{settings.max_elements:.3g} are allowed (Enumerate(max_elements=...)). {remedy}"
        )


def mark_for_enumeration(msg: Any, settings: Enumerate, marginal: bool, parallel: bool = True) -> None:
    """Mark a site's message for Pyro's enumeration, joint values of its `.to_event` dims included.

    `marginal` says that the site is in the model alone: a mask does not keep it from being summed out. Raises
    `EnumerationError` if its table is larger than `settings` allow, enumerated dims of earlier sites included.
    """
    fn = msg["fn"]
    check_table(msg, settings, marginal)
    base = base_distribution(fn)
    if fn.event_dim > len(base.event_shape) or without_mask(fn) is not fn:
        msg["fn"] = _Enumerated(fn, marginal)
    msg["infer"] = {**msg["infer"], "enumerate": "parallel" if parallel else "sequential"}


def refuse_unguided(name: str, fn: Any, infer: Mapping[str, Any]) -> None:
    """Raise `SiteMatchError` if a site in the model alone cannot be summed out."""
    if family_of(fn) in (None, Family.CONTINUOUS) or not math.isfinite(cardinality(fn)):
        if name.endswith("_unobserved"):  # what pyro.sample(..., obs_mask=) calls the part that is missing
            raise SiteMatchError(
                f"Site {name!r} is what obs_mask leaves to be drawn: missing values that no guide draws, and that have "
                "no finite support to be summed over. If no later site reads them, fill the gaps (torch.nan_to_num) "
                "and observe the data under poutine.mask(mask=obs_mask) in the place of obs_mask, which integrates "
                f"the missing ones out; else draw {name!r} in the guide too."
            )
        raise SiteMatchError(
            f"Site {name!r} is latent in the model but not drawn in the guide, and {why_not_enumerable(fn, infer)}. "
            "Draw it in the guide too."
        )


class Marginalise(EnumMessenger):
    """Enumerates every latent site of the model that is not in `drawn`, in dims left of rows and plates.

    `dims` says, by site, which enumerated site's values (by a number of its own) each such dim holds; `own` is each
    enumerated site's own number. `masked`: whether these sites' masks take their terms out, as maxima have it; in sums
    a masked site keeps its probability, which adds up to one.
    """

    def __init__(
        self, drawn: Collection[str], settings: Mapping[str, Enumerate], batch_dims: int, masked: bool = False
    ) -> None:
        super().__init__(first_available_dim=-2 - batch_dims)
        self.drawn, self.settings, self.masked = drawn, settings, masked
        self.dims: dict[str, dict[int, int]] = {}
        self.own: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and not msg["done"] and msg["name"] not in self.drawn:
            refuse_unguided(msg["name"], msg["fn"], msg["infer"])
            mark_for_enumeration(msg, self.settings.get(msg["name"]) or Enumerate(), marginal=not self.masked)
            super()._pyro_sample(msg)
            self.own[msg["name"]] = msg["infer"]["_dim_to_id"][msg["infer"]["_enumerate_dim"]]
        else:
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        # as in Pyro, but kept here: a replayed site's `infer` is the guide site's own
        if not isinstance(msg["fn"], TorchDistributionMixin) or not torch.is_tensor(msg["value"]):
            return
        name = msg["name"]
        known = dict(self._param_dims.get(name, {}))
        if name in self.own:
            known |= msg["infer"]["_dim_to_id"]
        self.dims[name] = known
        shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
        self._value_dims[name] = {d: i for d, i in known.items() if len(shape) >= -d and shape[d] > 1}


class _Enumerated(TorchDistribution):
    """A distribution with joint values of its `.to_event` dims in its support, and a score without mask."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, marginal: bool) -> None:
        self.fn = without_mask(fn) if marginal else fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Enumerated:
        return _Enumerated(self.fn.expand(batch_shape), False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        return ScoreParts(self.fn.log_prob(value), without_mask(self.fn).log_prob(value), torch.zeros(()))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = joint_support(self.fn)
        return values.expand(values.shape[:1] + self.fn.shape()) if expand else values

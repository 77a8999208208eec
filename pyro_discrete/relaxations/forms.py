"""Two forms of a relaxed value: the one-hot vectors that estimators work on, and the value that the program sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from pyro.distributions import OneHotCategorical
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, Independent, Multinomial

from pyro_discrete.errors import SettingError, UnsupportedSiteError
from pyro_discrete.families import Family
from pyro_discrete.programs.sites import Site, base_distribution, family_of
from pyro_discrete.relaxations.soft_index import SoftBit, SoftIndex

__all__ = [
    "hard_value",
    "log_masses",
    "one_hot_form",
    "one_hot_site",
    "one_hot_weights",
    "program_value",
    "rebuilt",
    "state_trials",
]

TRUNCATION = "truncation"
"""Key of a site's `infer` under which the largest count of its relaxation stands."""
MET = "largest number of trials met"
"""Key under which a Binomial's stands that states none: no data may have more trials, or the site's logits are NaN."""


def rebuilt(fn: Any, make: Callable[[Any], Any]) -> Any:
    """`fn` with its base distribution replaced by `make(base)`, below the same `.to_event`, `.mask` and `.expand`."""
    if isinstance(fn, MaskedDistribution):
        return rebuilt(fn.base_dist, make).mask(fn._mask)
    if isinstance(fn, Independent):
        return rebuilt(fn.base_dist, make).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return rebuilt(fn.base_dist, make).expand(fn.batch_shape)
    return make(fn)


def one_hot_site(site: Site) -> Site:
    """The site as estimators of relaxed values see it: integers as one-hot vectors, with a last dim for the categories.

    They need to know of no integers, then. Counts are one-hot over 0 to their largest value, and a Multinomial is as
    many one-hot vectors as it has trials.
    """
    if site.family in (Family.BERNOULLI, Family.ONE_HOT):
        return site
    return site.of(rebuilt(site.distribution, lambda base: one_hot_form(base, site.message["infer"], site.name)))


def state_trials(site: Site, met: dict[str, int], read: bool) -> None:
    """Tell a Binomial site that states no truncation the largest number of trials met in any step.

    With `read` its own are looked at first; a captured step must not, and has the number of the steps before it.
    """
    base, infer = base_distribution(site.distribution), site.message["infer"]
    if not isinstance(base, Binomial) or TRUNCATION in infer:
        return
    if read:
        met[site.name] = max(met.get(site.name, 1), int(base.total_count.max()))
    if site.name in met:
        site.message["infer"] = {**infer, MET: met[site.name]}  # another dict: the model's site may have this one


def one_hot_form(base: Any, infer: Mapping[str, Any], name: str) -> Any:
    """The distribution of one-hot vectors behind a Categorical, a count or a Multinomial."""
    if isinstance(base, Categorical):
        return OneHotCategorical(logits=base.logits, validate_args=False)
    if isinstance(base, Multinomial):
        logits = base.logits.unsqueeze(-2)
        trials = logits.expand(*base.batch_shape, base.total_count, logits.shape[-1])
        return OneHotCategorical(logits=trials, validate_args=False).to_event(1)
    if family_of(base) is Family.COUNT:
        largest = _largest(base, infer, name)
        values = torch.arange(largest + 1, dtype=base.mean.dtype, device=base.mean.device)
        logits = log_masses(base, values)
        if TRUNCATION not in infer and MET in infer:
            logits = torch.where((base.total_count > largest).unsqueeze(-1), torch.nan, logits)
        return OneHotCategorical(logits=logits, validate_args=False)
    return base


def _largest(base: Any, infer: Mapping[str, Any], name: str) -> int:
    given = infer.get(TRUNCATION)
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise SettingError(
                f"Site {name!r}: infer={{{TRUNCATION!r}: {given!r}}} given; the largest count, a whole number of at "
                "least one, is expected."
            )
        return given
    if isinstance(base, Binomial):
        return infer[MET] if MET in infer else int(base.total_count.max())
    raise UnsupportedSiteError(
        f"Site {name!r} is {type(base).__name__}, which has no relaxation before it is said where its values are to "
        f'end. State the largest count, which it should hardly ever exceed, at the site: infer={{"{TRUNCATION}": 20}}. '
        "Estimators that would do without: 'rloo', 'nvil'."
    )


def log_masses(base: Any, values: Tensor) -> Tensor:
    """Log-mass of `base` at each of the values `[K]`: `[*batch, K]`."""
    if isinstance(base, Categorical) and values.shape[-1] == base.logits.shape[-1]:
        return base.logits
    bare = copy(base)
    bare._validate_args = False  # counts that one element cannot have get no mass, and are no error
    return bare.log_prob(values.reshape((-1,) + (1,) * len(base.batch_shape))).movedim(0, -1)


def program_value(fn: Any, weights: Tensor, name: str) -> Tensor:
    """What the program sees of weights of a site with this distribution: a soft index or bit, or the weights."""
    base = base_distribution(fn)
    if isinstance(base, Bernoulli):
        return SoftBit(weights, name)
    if isinstance(base, Categorical):
        return SoftIndex(weights, site=name)
    if isinstance(base, Multinomial):
        return weights.sum(-2)
    if family_of(base) is Family.COUNT:
        return SoftIndex(weights, torch.arange(weights.shape[-1], device=weights.device).to(weights.dtype), name)
    return weights


def one_hot_weights(fn: Any, value: Tensor) -> Tensor:
    """Hard values of a site as weights: an integer site's as one-hot vectors."""
    base = base_distribution(fn)
    if not isinstance(base, Categorical):
        return value
    categories = torch.arange(base.logits.shape[-1], device=value.device)
    return (value.unsqueeze(-1) == categories).to(base.logits.dtype)


def hard_value(fn: Any, corner: Tensor) -> Tensor:
    """The inverse of `one_hot_weights`: weights of zero and one as a value of the site."""
    return corner.argmax(-1) if isinstance(base_distribution(fn), Categorical) else corner

"""Single values that stand for a distribution: modes of discrete sites, centres of continuous ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import EnumerationError
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN, find_dependencies
from pyro_discrete.programs.pair import Pair, SiteMessenger
from pyro_discrete.programs.sites import (
    Site,
    base_distribution,
    cardinality,
    element_support,
    family_of,
    is_latent,
    why_not_enumerable,
)

__all__ = [
    "AtCentre",
    "FiniteCounts",
    "centre",
    "modes",
    "standing_alone",
]


TAIL = 1e-6
"""A count's values are gone through until so little probability is left beyond them."""

MOST_VALUES = 2**17

DRAWS_OF_CENTRE = 1001

DRAWS_OF_MODE = 1000


def standing_alone(pair: Pair, large: Iterable[Site], every: Iterable[Site]) -> list[str]:
    """The large sites of the guide whose elements are independent, of each other and of the guide's other sites.

    They are drawn given no discrete site, and read by none of `every`. Empty where dependences are not known.
    """
    names = [
        s.name
        for s in large
        if s.family is Family.STRUCTURE or s.distribution.event_dim > len(base_distribution(s.distribution).event_shape)
    ]
    known = find_dependencies(pair) if names else UNKNOWN
    if not known.known:
        return []
    return [
        name
        for name in names
        if not any(
            known.downstream(name, other.name) or (other.family is not None and known.downstream(other.name, name))
            for other in every
            if other.name != name
        )
    ]


def modes(fn: Any) -> Tensor:
    """Each element's most probable value `[*batch, *event]`; the first of them, where there are several.

    A structure's own mode; of one that knows none, and has too many values to go through, the best of its draws.
    """
    base = base_distribution(fn)
    if isinstance(base, Structure):
        if base.defines("argmax"):
            return base.mode.expand(fn.shape())
        if base.cardinality > MOST_VALUES:
            return _best_draw(base).expand(fn.shape())
    values = element_support(base)
    scores = base.log_prob(values.reshape(len(values), *(1,) * len(base.batch_shape), *base.event_shape))
    return values[scores.argmax(0)].expand(fn.shape())


def _best_draw(structure: Structure) -> Tensor:
    """The most probable of some draws, with a warning that there may be better ones."""
    warnings.warn(
        f"{type(structure).__name__} has no most probable value that can be found, and {structure.cardinality:.3g} "
        f"values are too many to go through: the best of {DRAWS_OF_MODE} draws takes its place.",
        stacklevel=2,
    )
    draws = structure.sample(torch.Size([DRAWS_OF_MODE]))
    best = structure.log_prob(draws).argmax(0)
    index = best.reshape(1, *best.shape, *(1,) * len(structure.event_shape)).expand(1, *draws.shape[1:])
    return draws.gather(0, index)[0]


def centre(fn: Any) -> Tensor:
    """The mean of a continuous distribution, `[*batch, *event]`; the median where the mean is infinite or not known.

    Medians without a closed form are those of 1,001 draws, of a seed of their own, so that they are the same at every
    call; where these are outside of the support (a matrix, a simplex), the draw that is nearest to them.
    """
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError, ValueError):
        mean = None
    if mean is not None and bool(mean.isfinite().all()):
        return mean
    median = _median(fn)
    return median if mean is None else torch.where(mean.isfinite(), mean, median)


def _median(fn: Any) -> Tensor:
    base = base_distribution(fn)
    if not base.event_shape:
        try:
            half = torch.full((), 0.5, dtype=getattr(base.mean, "dtype", None))
        except (NotImplementedError, AttributeError, ValueError):
            half = torch.tensor(0.5)
        try:
            found = base.icdf(half)
            if bool(found.isfinite().all()):
                return found.expand(fn.shape())
        except (NotImplementedError, AttributeError, ValueError):
            pass
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        draws = fn.sample(torch.Size([DRAWS_OF_CENTRE]))
    median = draws.median(0).values
    support = fn.support
    if bool(torch.as_tensor(support.check(median)).all()):
        return median
    event = tuple(range(median.dim() - fn.event_dim, median.dim()))
    distance = (draws - median).square()
    distance = distance.sum([d + 1 for d in event]) if event else distance
    nearest = distance.argmin(0)
    index = nearest.reshape(1, *nearest.shape, *(1,) * fn.event_dim).expand(1, *median.shape)
    return draws.gather(0, index)[0]


class AtCentre(SiteMessenger):
    """Continuous latent sites take their `centre`."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and msg["value"] is None and Site(msg).family in (None, Family.CONTINUOUS):
            msg["value"], msg["done"] = centre(msg["fn"]), True


class FiniteCounts(SiteMessenger):
    """Cuts the support of latent counts without a last value where next to no probability is left.

    Raises `EnumerationError` where no such place is found.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not is_latent(msg) or msg["done"] or family_of(fn) not in (Family.COUNT, Family.DISCRETE):
            return
        base = base_distribution(fn)
        if cardinality(base) < float("inf"):
            return
        msg["fn"] = _FiniteCount.of(base, msg["name"]).to_event(fn.event_dim - len(base.event_shape))


class _FiniteCount(TorchDistribution):
    """A count's distribution up to a last value, beyond which it has next to no probability."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, values: Tensor) -> None:
        self.fn, self.values = fn, values
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @classmethod
    def of(cls, fn: Any, name: str) -> _FiniteCount:
        """Cut where less than `TAIL` is left; `EnumerationError` for a support that is not the whole numbers."""
        support = getattr(fn, "support", None)
        count = 64
        while not fn.event_shape and count <= MOST_VALUES:
            made = cls(fn, torch.arange(count) + int(getattr(support, "lower_bound", 0) if _plain(support) else 0))
            total = made.log_prob(made.enumerate_support(False)).double().exp().sum(0)
            if bool((total > 1 - TAIL).all()):
                return made
            count *= 4
        if fn.event_shape:
            raise EnumerationError(
                f"Site {name!r} ({type(fn).__name__}) {why_not_enumerable(fn, {})}: its most probable value cannot be "
                "found by going through them."
            )
        raise EnumerationError(
            f"Site {name!r} ({type(fn).__name__}) has no finite support, nor are there {MOST_VALUES} whole numbers "
            "that hold all but next to nothing of its probability: its most probable value cannot be found by going "
            "through them."
        )

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _FiniteCount:
        return _FiniteCount(self.fn.expand(batch_shape), self.values)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """In double precision, where the distribution takes such values: large counts are close to each other."""
        inside = torch.as_tensor(self.fn.support.check(value))
        least = torch.as_tensor(getattr(self.fn.support, "lower_bound", 0)).to(value)
        value = torch.where(inside, value, least)
        try:
            found = self.fn.log_prob(value.double())
        except RuntimeError:  # of dtypes that differ
            found = self.fn.log_prob(value)
        return found.masked_fill(~inside, -float("inf"))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        dtype = next((p.dtype for p in _parameters(self.fn) if p.is_floating_point()), torch.get_default_dtype())
        values = self.values.to(dtype).reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(len(values), *self.batch_shape) if expand else values


def _plain(support: Any) -> bool:
    return isinstance(getattr(support, "lower_bound", None), int)


def _parameters(fn: Any) -> list[Tensor]:
    found = [getattr(fn, name, None) for name in getattr(fn, "arg_constraints", {})]
    return [p for p in found if torch.is_tensor(p)]

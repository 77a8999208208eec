"""Most probable values of sites too large for a table of joint values: element by element, where that is exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pyro_discrete.inspection.dependencies import UNKNOWN, find_dependencies
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import Site, base_distribution

__all__ = ["modes", "standing_alone"]


def standing_alone(pair: Pair, large: Iterable[Site], every: Iterable[Site]) -> list[str]:
    """The large sites of the guide whose elements are independent, of each other and of the guide's other sites.

    They are drawn given no discrete site, and read by none of `every`. Empty where dependences are not known.
    """
    names = [s.name for s in large if s.distribution.event_dim > len(base_distribution(s.distribution).event_shape)]
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
    """Each element's most probable value `[*batch, *event]`; the first of them, where there are several."""
    base = base_distribution(fn)
    values = base.enumerate_support(expand=False)
    values = values.reshape(len(values), *base.event_shape)
    scores = base.log_prob(values.reshape(len(values), *(1,) * len(base.batch_shape), *base.event_shape))
    return values[scores.argmax(0)].expand(fn.shape())

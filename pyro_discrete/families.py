"""The kinds of discrete sites, and which of them have a finite support or a relaxation."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ANY_FAMILY",
    "FINITE",
    "PATHWISE",
    "RELAXABLE",
    "Family",
]


class Family(str, Enum):
    """The kind of a latent site that is not reparameterised."""

    BERNOULLI = "Bernoulli"
    CATEGORICAL = "Categorical"
    ONE_HOT = "OneHotCategorical"
    COUNT = "count"
    DISCRETE = "other discrete"
    CONTINUOUS = "continuous, not reparameterised"


ANY_FAMILY = frozenset(Family)


FINITE = frozenset({Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT, Family.COUNT, Family.DISCRETE})
"""The kinds that have, or may have, a finite support."""


RELAXABLE = frozenset({Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT})
"""The kinds whose relaxation has the hard distribution at its corners."""


PATHWISE = RELAXABLE | {Family.COUNT}
"""Those, and the kinds whose relaxation is of a truncated support."""

"""The kinds of discrete sites, which of them have a finite support or a relaxation, and what may be asked of one."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ANY_FAMILY",
    "FINITE",
    "PATHWISE",
    "RELAXABLE",
    "Family",
    "Need",
]


class Family(str, Enum):
    """The kind of a latent site that is not reparameterised."""

    BERNOULLI = "Bernoulli"
    CATEGORICAL = "Categorical"
    ONE_HOT = "OneHotCategorical"
    COUNT = "count"
    STRUCTURE = "structure"
    DISCRETE = "other discrete"
    CONTINUOUS = "continuous, not reparameterised"


class Need(str, Enum):
    """What an estimator may ask of a structure's distribution, beyond draws and their log-probabilities.

    Read off what the distribution defines. All other kinds of sites have what their families say.
    """

    SUPPORT = "support that can be listed"
    NOISE_GIVEN = "noise given a value"
    NOISE = "noise that stands for a value"
    MARGINALS = "marginals"
    LOG_MASS = "log-mass between its values"


ANY_FAMILY = frozenset(Family)


FINITE = frozenset(
    {Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT, Family.COUNT, Family.STRUCTURE, Family.DISCRETE}
)
"""The kinds that have, or may have, a finite support."""


RELAXABLE = frozenset({Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT})
"""The kinds whose relaxation has the hard distribution at its corners."""


PATHWISE = RELAXABLE | {Family.COUNT}
"""Those, and the kinds whose relaxation is of a truncated support."""

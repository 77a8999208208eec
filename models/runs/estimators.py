"""The estimators as the command line sees them: by name, with what they claim and what they need."""

from __future__ import annotations

import inspect

from pyro_discrete import NVIL, available_estimators
from pyro_discrete.errors import UnknownEstimatorError, near_matches

__all__ = ["AUTO", "bias", "check_estimator", "has_temperature", "least_particles"]

AUTO = "auto"
"""Not an estimator but a rule that names one for each site."""


def check_estimator(name: str) -> None:
    """Raise the library's `UnknownEstimatorError` if no estimator has that name."""
    known = available_estimators()
    if name != AUTO and name not in known:
        raise UnknownEstimatorError(f"There is no estimator named {name!r}. {near_matches(name, [*known, AUTO])}")


def least_particles(name: str) -> int:
    """The least number of particles that the estimator works with."""
    if name == AUTO:
        return 1
    estimator = available_estimators()[name].cls
    return max(estimator.min_particles, estimator.min_inner)


def has_temperature(name: str) -> bool:
    """Whether the estimator is one of those that take a temperature; False for an unknown one."""
    known = available_estimators()
    return name in known and "temperature" in inspect.signature(known[name].cls).parameters


def bias(name: str) -> str:
    """Whether the mean of the estimate is the exact gradient, in a word or two for tables."""
    if name == NVIL.name:
        return "up to scale"
    return "unbiased" if name == AUTO or available_estimators()[name].unbiased else "biased"

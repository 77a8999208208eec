"""The estimators as the command line sees them: by name, with what they claim, and as the ELBO of a run."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from models.errors import ConfigError
from pyro_discrete import NVIL, Estimator, TraceELBO, TraceIWELBO, available_estimators
from pyro_discrete.engine import DiscreteELBO
from pyro_discrete.errors import UnknownEstimatorError, near_matches

if TYPE_CHECKING:
    from models.runs.config import RunConfig

__all__ = ["AUTO", "bias", "build_elbo", "check_estimator", "has_temperature", "least_particles"]

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


def build_elbo(config: RunConfig, *, rescaled: bool = True) -> DiscreteELBO:
    """The ELBO of a run, or the importance-weighted bound for the estimators that are made for it.

    With `rescaled=False`, NVIL leaves out its division by the signal's running deviation, which shrinks gradient and
    noise alike: without it, its variance can be compared with the others'.

    Raises `ConfigError` if a temperature is given to an estimator that has none, and the library's `SettingError` if
    it is not positive.
    """
    name = config.estimator
    if name == NVIL.name and not rescaled:
        return TraceELBO(NVIL(variance_normalisation=False), num_particles=config.particles)
    if config.temperature is None:
        return _elbo(available_estimators()[name].cls() if name != AUTO else AUTO, config.particles)
    if not has_temperature(name):
        raise ConfigError(f"Estimator {name!r} has no temperature; leave out --temperature.")
    estimator = available_estimators()[name].cls(temperature=config.temperature)  # type: ignore[call-arg]
    return _elbo(estimator, config.particles)


def _elbo(estimator: str | Estimator, particles: int) -> DiscreteELBO:
    weighted = isinstance(estimator, Estimator) and estimator.importance_weighted
    return (TraceIWELBO if weighted else TraceELBO)(estimator, num_particles=particles)

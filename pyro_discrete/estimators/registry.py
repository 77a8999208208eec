"""The estimators by name, found in the package: what is said of each, and which one a name may mean."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from inspect import isabstract

from pyro_discrete import estimators as estimators
from pyro_discrete.errors import UnknownEstimatorError, near_matches
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.families import Family, Need

__all__ = [
    "AUTO",
    "EstimatorInfo",
    "available_estimators",
    "named_estimator",
]


AUTO = "auto"


PATHWISE_NAMES = frozenset({"pathwise", "reparam", "reparameterised", "reparameterized", "rsample"})


@dataclass(frozen=True)
class EstimatorInfo:
    """What `available_estimators` tells of one estimator.

    - `cls`: its class. `families`: of sites that it serves. `summary`: what it is, in a line. `reference`: its source.
    - `unbiased`: for the default configuration. `evaluations`: how often the model is evaluated in a step.
    - `also_known`: other names that lead to it. `needs`: what a structure has to be able to do for it.
    """

    cls: type[Estimator]
    families: frozenset[Family]
    unbiased: bool
    evaluations: str
    summary: str
    reference: str
    also_known: tuple[str, ...] = ()
    needs: frozenset[Need] = frozenset()


def available_estimators() -> dict[str, EstimatorInfo]:
    """Every estimator by its name: class, families of sites, unbiased or not, evaluations, one line, reference.

    >>> available_estimators()["rloo"].evaluations
    '1 a particle, 2 or more particles'
    """
    _classes.cache_clear()  # there may be new modules
    found: dict[str, EstimatorInfo] = {}
    for name, cls in _classes().items():
        default = cls()
        found[name] = EstimatorInfo(
            cls,
            default.families,
            default.unbiased,
            cls.evaluations,
            cls.summary,
            cls.reference,
            cls.also_known,
            default.needs,
        )
    return found


@cache
def _classes() -> dict[str, type[Estimator]]:
    """Each estimator's class by its name, in alphabetical order."""
    found = {
        value.name: value
        for module in pkgutil.walk_packages(estimators.__path__, estimators.__name__ + ".")
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, type) and issubclass(value, Estimator) and not isabstract(value)
    }
    return dict(sorted(found.items()))


def named_estimator(name: str) -> Estimator:
    """A new estimator of that name, by default settings; `UnknownEstimatorError` if there is none."""
    if name not in _classes() and name not in (known := available_estimators()):
        meant = _meant(name, known)
        raise UnknownEstimatorError(
            f"There is no estimator named {name!r}. {meant} See pyro_discrete.available_estimators()."
        )
    return _classes()[name]()


def _meant(name: str, known: Mapping[str, EstimatorInfo]) -> str:
    """Which estimator a name may mean: written otherwise ("GumbelSoftmax"), otherwise known ("u2g"), or nearly so."""

    def spelling(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    meant = {spelling(AUTO): AUTO}
    for own, info in known.items():
        meant |= {spelling(text): own for text in (*info.also_known, info.cls.__name__, own)}
    if spelling(name) in PATHWISE_NAMES:
        return "Continuous sites that can be reparameterised are pathwise by themselves: leave them out of the choice."
    close = get_close_matches(spelling(name), meant, n=3, cutoff=0.6)
    names = [meant[spelling(name)]] if spelling(name) in meant else list(dict.fromkeys(meant[c] for c in close))
    return "Did you mean " + " or ".join(map(repr, names)) + "?" if names else near_matches(name, [*known, AUTO])

"""Which site gets which estimator: names, instances, dicts with globs, callables, and the rule behind "auto"."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

from torch.distributions import Binomial

from pyro_discrete.distributions.structure import LARGEST_SUPPORT
from pyro_discrete.errors import (
    EnumerationError,
    ParticleError,
    SettingError,
    UnknownSiteError,
    UnsupportedObjectiveError,
    UnsupportedSiteError,
    near_matches,
    shown,
)
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.registry import AUTO, EstimatorInfo, available_estimators, named_estimator
from pyro_discrete.estimators.score.nvil import NVIL
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import ANY_FAMILY, Family, Need
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.automatic import Situation, ranking
from pyro_discrete.programs.sites import Site, base_distribution, batched_alike

__all__ = [
    "Selection",
    "Spec",
]


Choice = str | Estimator | None


Spec = str | Estimator | Mapping[str, str | Estimator] | Callable[[Site], Choice]


def automatic_estimator(name: str) -> Estimator:
    """What "auto" means by a name: the estimator that its table measured, NVIL without the rescaling that biases it."""
    return NVIL(variance_normalisation=False) if name == NVIL.name else named_estimator(name)


class Selection:
    """Resolves what the user asked for to one estimator (of its own) for each site.

    Precedence: the site's own `infer={"estimator": ...}`, then the ELBO's dict or callable, then its default. In a
    dict an exact name goes before globs, and globs go in their order. Sites that nothing names get "auto".
    """

    def __init__(self, spec: Spec, objective: Objective, particles: int) -> None:
        self.objective: Objective = objective
        self.particles: int = particles
        self.remembered: dict[str, str] = {}
        if isinstance(spec, type) and issubclass(spec, Estimator):
            raise SettingError(f"estimator={spec.__name__} is a class; give an instance: {spec.__name__}().")
        if isinstance(spec, Mapping):
            for name, choice in spec.items():
                if not isinstance(name, str):
                    raise SettingError(f"{name!r} in the estimator dict is no site name or glob: a string is expected.")
                self._check(choice, f"for sites {name!r}")
            spec = dict(spec)
        elif isinstance(spec, str | Estimator):
            self._check(spec, "")
        elif not callable(spec):
            raise SettingError(
                f"estimator={shown(spec)} given; a name, an Estimator, a dict from site names or globs to these, or a "
                "function of a site is expected."
            )
        self.spec: Spec = spec

    def _check(self, choice: object, where: str) -> None:
        """Refuse an unknown name, or one that cannot work with this many particles, before any run."""
        if isinstance(choice, str):
            if choice != AUTO:
                self._check(named_estimator(choice), where)
        elif isinstance(choice, Estimator):
            self.objective.check_estimator(choice, where, self.particles)
        else:
            raise SettingError(
                f"{shown(choice)} {where} is neither the name of an estimator nor an Estimator instance."
            )

    def take_particles(self, particles: int) -> None:
        """Go on with so many; refuse what was asked for where it cannot work with them."""
        self.particles = particles
        choices = self.spec.values() if isinstance(self.spec, Mapping) else [self.spec]
        for choice in choices:
            if isinstance(choice, str | Estimator):
                self._check(choice, "")

    def wanted(self, site: Site) -> tuple[Choice, str]:
        """What the user asked for at this site, and where they said it."""
        own = site.message["infer"].get("estimator")
        if own is not None:
            self._check(own, f"at site {site.name!r}")
            return own, "the site's infer"
        if isinstance(self.spec, str | Estimator):
            return self.spec, "the ELBO's default"
        if isinstance(self.spec, Mapping):
            if site.name in self.spec:
                return self.spec[site.name], "by name"
            for pattern, choice in self.spec.items():
                if fnmatchcase(site.name, pattern):
                    return choice, f"by glob {pattern!r}"
            return AUTO, "named nowhere"
        choice = self.spec(site)
        if choice is not None:
            self._check(choice, f"returned by the callable for site {site.name!r}")
        return choice, "the callable"

    def check_continuous(self, site: Site) -> None:
        """Refuse what was chosen for a continuous site by its name, or at the site itself, and does not serve it."""
        named = isinstance(self.spec, Mapping) and site.name in self.spec
        choice = self.wanted(site)[0] if named or site.message["infer"].get("estimator") is not None else None
        if choice is None or choice == AUTO:
            return
        made = named_estimator(choice) if isinstance(choice, str) else choice
        if Family.CONTINUOUS not in made.families:
            kind, instead = "continuous, its gradient pathwise without an estimator", ""
            if site.family is not None:
                kind = "continuous, not reparameterised"
                instead = f", or choose {', '.join(serving(site, self.objective, self.particles))}"
            raise UnsupportedSiteError(
                f"Estimator {made.name!r} does not serve site {site.name!r}, which is "
                f"{type(site.distribution).__name__} ({kind}). It serves "
                f"{', '.join(sorted(f.value for f in made.families))}. Leave the site out{instead}."
            )

    def check_patterns(self, names: Collection[str], more_names: Callable[[], Collection[str]]) -> None:
        """Refuse a name or glob that matches no latent site of the guide, in its first run nor in others."""
        if not isinstance(self.spec, Mapping):
            return
        if not all(any(fnmatchcase(name, pattern) for name in names) for pattern in self.spec):
            names = more_names()
        for pattern in self.spec:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
                raise UnknownSiteError(
                    f"{pattern!r} in the estimator dict matches no latent site of the guide. "
                    f"{near_matches(pattern, names) if names else 'The guide has no latent sites.'}"
                )

    def estimator(self, site: Site, situation: Situation | None = None, shared: bool = False) -> tuple[Estimator, str]:
        """An estimator of the site's own, and why it was chosen. Not for "auto" and reparameterised sites.

        A non-reparameterised continuous site that the wanted estimator does not serve gets the score function, and a
        site that a bound's particles share (`shared`) the choice of "auto" where one for their weights is wanted.
        """
        choice, why = self.wanted(site)
        if choice is None or choice == AUTO:
            name, why = self._automatic(site, situation or Situation(), shared)
            made = automatic_estimator(name)
        else:
            made = named_estimator(choice) if isinstance(choice, str) else deepcopy(choice)
        if shared and made.importance_weighted:
            made = automatic_estimator(self._automatic(site, Situation(), shared)[0])
            why = "shared by a bound's particles, which have no weights there"
        family = site.family
        if family is Family.CONTINUOUS and family not in made.families:
            return Reinforce(), "continuous and not reparameterised: the score function"
        if family is not None and family not in made.families:
            raise UnsupportedSiteError(
                f"Estimator {made.name!r} does not serve site {site.name!r}, which is "
                f"{type(site.distribution).__name__} ({family.value}). It serves "
                f"{', '.join(sorted(f.value for f in made.families))}. "
                f"{made.instead(None) if family is Family.STRUCTURE else batched_alike(site.distribution)}"
                f"Estimators that would do: {', '.join(serving(site, self.objective, self.particles))}."
            )
        lacking = [need for need in Need if need in made.needs - site.needs_met]
        if lacking:
            raise self._lacks(site, made, lacking[0])
        return made, why

    def _lacks(self, site: Site, made: Estimator, need: Need) -> UnsupportedSiteError | EnumerationError:
        """The error for a structure that cannot do what an estimator asks of it."""
        kind = type(base_distribution(site.distribution)).__name__
        would_do = f"Estimators that would do: {', '.join(serving(site, self.objective, self.particles))}."
        if need is Need.SUPPORT:
            return EnumerationError(
                f"Estimator {made.name!r} cannot list the values of site {site.name!r}, which is {kind}: it has "
                f"{site.cardinality:.4g} of them, and up to {LARGEST_SUPPORT} are listed. {would_do}"
            )
        return UnsupportedSiteError(
            f"Estimator {made.name!r} does not serve site {site.name!r}, as {kind} has no {need.value}. "
            f"{made.instead(need)}{would_do}"
        )

    def _automatic(self, site: Site, situation: Situation, shared: bool) -> tuple[str, str]:
        """What "auto" is where not all is enumerated: the table's first that can be had; a saved choice is kept.

        Without a reason to prefer another, "nvil" with one particle and "rloo" with more.
        """
        known = available_estimators()
        saved = known.get(self.remembered.get(site.name, ""))
        had = saved is not None and saved.cls is not Enumerate and saved.cls.min_particles <= self.particles
        if saved is not None and had and (not saved.cls.separable or situation.separable()):
            return saved.cls.name, "auto: as saved"
        weighed = self.objective.automatic() if not shared else ""
        if weighed:
            return weighed, "auto: weighted particles"
        family = site.family or Family.DISCRETE
        law = type(base_distribution(site.distribution)).__name__
        work = situation.work()
        names, cell = ranking(family, site.cardinality, situation.depth, self.particles, work, law=law)
        passed = []
        for name in names if not shared else ():
            info = known[name]
            if info.cls is Enumerate or not serves(info, site) or info.cls.min_particles > self.particles:
                continue
            why_not = situation.why_not(info.cls(), site)
            if not why_not:
                skipped = "".join(f"; not {other}, as {reason}" for other, reason in passed)
                return name, f"auto: least variance x time, measured near it ({cell}{skipped})"
            passed.append((name, why_not))
        return ("rloo", f"auto: {self.particles} particles") if self.particles > 1 else ("nvil", "auto: one particle")

    def may_sum(self, msg: Any) -> bool:
        """Whether a count is to be given a last value: "enumerate" was asked for; "auto" takes a Binomial's as well,
        from which nothing is left out."""
        site = Site(msg)
        choice = self.wanted(site)[0]
        if choice in (None, AUTO):
            return isinstance(base_distribution(site.distribution), Binomial)
        return isinstance(choice, Enumerate) or choice == Enumerate.name

    def wants_enumeration(self, sites: Iterable[Site]) -> tuple[bool, Enumerate]:
        """Whether one of these sites is asked to be enumerated and none otherwise, and with which settings."""
        settings = Enumerate()
        explicit = False
        for site in sites:
            choice, _ = self.wanted(site)
            if isinstance(choice, Enumerate):
                settings, explicit = choice, True
            elif choice == Enumerate.name:
                explicit = True
            elif choice is not None and choice != AUTO:
                return False, settings
            else:
                continue
        return explicit, settings

    def left_to_auto(self, site: Site) -> bool:
        """Whether the site is left to "auto", and was not sampled by a saved choice."""
        return self.wanted(site)[0] in (None, AUTO) and self.remembered.get(site.name, Enumerate.name) == Enumerate.name


def serving(site: Site, objective: Objective, particles: int) -> list[str]:
    """Names of the estimators that serve a site and work on this objective with so many particles."""
    known = available_estimators()
    if not math.isfinite(site.cardinality) and site.family is not Family.STRUCTURE:
        known = {name: info for name, info in known.items() if info.families == ANY_FAMILY}
    return [n for n, e in known.items() if serves(e, site) and _works(e.cls, objective, particles)]


def serves(info: EstimatorInfo, site: Site) -> bool:
    """Whether an estimator serves a site's family, and has of a structure what it needs."""
    return (site.family or Family.DISCRETE) in info.families and info.needs <= site.needs_met


def _works(cls: type[Estimator], objective: Objective, particles: int) -> bool:
    try:
        objective.check_estimator(cls(), "", particles)
    except (ParticleError, UnsupportedObjectiveError):
        return False
    return True

"""Which estimator each site of a run has: its planned one, one for a site met on the way, or what draws hard values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from pyro_discrete.draws.softening import corner
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.planning.make_plan import plan_site
from pyro_discrete.planning.plan import Plan, StructureChangedError, Vectorised
from pyro_discrete.planning.products import check_members
from pyro_discrete.planning.select import Selection
from pyro_discrete.planning.site_estimators import SiteEstimators
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.laws import StructureLaw
from pyro_discrete.programs.sites import Site
from pyro_discrete.relaxations.relaxed_distribution import hard_value, one_hot_site, state_trials

__all__ = [
    "Choice",
    "HardChoice",
    "TrainingChoice",
]


class Choice(Protocol):
    """Which estimator a site of a run has."""

    def of(self, site: Site) -> Estimator | None:
        """The site's estimator, None for a reparameterised one.

        Raises `StructureChangedError` for a site that the plan has no room for.
        """
        ...


class TrainingChoice:
    """What the plan gives each site, or the site itself by its `infer`; a site that it does not know is taken in.

    - `kept`: the ELBO's estimators, with their state. `step`: how many steps it has made.
    - `read`: whether tensors' values may be looked at, which a captured step does not.
    """

    def __init__(
        self, plan: Plan, selection: Selection, kept: SiteEstimators, step: Tensor | int, read: bool = True
    ) -> None:
        self.plan: Plan = plan
        self.selection: Selection = selection
        self.kept: SiteEstimators = kept
        self.step: Tensor | int = step
        self.read: bool = read

    def of(self, site: Site) -> Estimator | None:
        """See `Choice.of`."""
        _check_dims(site, self.plan)
        if site.family is None:
            return None
        site.step = self.step
        estimator = self.known(site.name, site.message["infer"])
        if estimator is None:
            estimator = self._taken_in(site)
        if estimator.relaxed or estimator.sloped:
            state_trials(site, self.plan.met.largest, self.read)
        return estimator

    def known(self, name: str, infer: Mapping[str, Any]) -> Estimator | None:
        """That of a site that the plan knows, by its name and what it says of itself; None of any other."""
        known, given = _planned(self.plan, name), infer.get("estimator")
        if isinstance(given, Estimator) and type(given) is type(known) and not given.state_dict():
            return given  # the site's own choice, whose settings may change from step to step
        return known

    def _taken_in(self, site: Site) -> Estimator:
        """The estimator of a site that only some runs have."""
        if self.plan.path == Vectorised.path:
            raise StructureChangedError(f"site {site.name!r} is new")
        line, chosen = plan_site(site, self.selection, self.plan.layout)
        assert chosen is not None, "a site without a family has no estimator"
        if isinstance(chosen, Enumerate) and not self.plan.given:  # no draw has led to it: its sum is to be exact
            raise StructureChangedError(f"site {site.name!r} is new")
        if isinstance(chosen, Enumerate) and chosen.product:
            products = self.plan.columns.products
            check_members([site.name, *products], products)
        kept = self.kept.keep(site.name, chosen)
        kept.prepare(0, site.distribution.sample())
        self.plan.met.sites.append(line)
        self.plan.met.estimators[site.name] = kept
        return kept


class HardChoice:
    """What draws hard values in the place of each site's estimator, on the same noise."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def of(self, site: Site) -> Estimator | None:
        """See `Choice.of`."""
        _check_dims(site, self.plan)
        if site.family is None:
            return None
        estimator = _planned(self.plan, site.name)
        if estimator is None and not self.plan.given:  # no draw has led to it: its sum may have to be exact
            raise StructureChangedError(f"site {site.name!r} is new")
        if estimator is None or 0 not in estimator.relaxed or not estimator.draws_from_guide:
            return _PLAIN
        return _Hardened(estimator)


class _Hardened(Reinforce):
    """Draws as a relaxed estimator does, and rounds to the corner behind the draw."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    def draw(self, site: SiteView) -> Draw:
        if not isinstance(site, Site) or site.family is Family.COUNT:  # a relaxed count's support is truncated
            return super().draw(site)
        seen = one_hot_site(site)
        soft = self.estimator.draw(seen).value[:1].detach()
        if isinstance(seen.law, StructureLaw):  # rounding soft numbers need not give a value
            vertex = seen.law.drawn
            return super().draw(site) if vertex is None else Draw(hard_value(site.distribution, vertex).unsqueeze(0))
        return Draw(hard_value(site.distribution, corner(soft, one_hot=site.family is not Family.BERNOULLI)))


_PLAIN = Reinforce()


def _planned(plan: Plan, name: str) -> Estimator | None:
    known = plan.given.get(name)
    return plan.met.estimators.get(name) if known is None else known


def _check_dims(site: Site, plan: Plan) -> None:
    """Raise `StructureChangedError` for a site in more plates than the plan knows of."""
    rows = any(f.name == ROWS_PLATE for f in site["cond_indep_stack"])
    dims = len(site.distribution.batch_shape) - (1 if rows else 0)
    if dims > plan.batch_dims:
        raise StructureChangedError(f"site {site.name!r} is in more plates than before", dims)

"""Before any work: which sites of the model are summed out, whether that can be had, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro import poutine

from pyro_discrete.components import Component, components, contract
from pyro_discrete.elimination import SizesAlone
from pyro_discrete.enumerated_sites import Marginalise, check_table, refuse_unguided
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteMatchError
from pyro_discrete.estimators.registry import AUTO
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.trial import Trial, check_rows, crossing_site
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import Site, latent_sites, sample_sites
from pyro_discrete.select import Selection
from pyro_discrete.sums_one_by_one import from_first, joint_traces

__all__ = [
    "SumCost",
    "component_cost",
    "marginal_settings",
    "marginal_sites",
    "settle",
    "settle_marginals",
]


class NoLeadingDimsError(EnumerationError):
    """A program that cannot take leading dims, over which its own sites are summed out."""


@dataclass(frozen=True)
class SumCost:
    """What an exact sum costs, in elements: its largest table, and all tables together (what has to be computed)."""

    largest: int = 0
    operations: int = 0

    def __str__(self) -> str:
        return f"largest table {self.largest:.3g} elements, {self.operations:.3g} operations"

    def beside(self, other: SumCost) -> SumCost:
        """Both, one after the other."""
        return SumCost(max(self.largest, other.largest), self.operations + other.operations)

    def times(self, rows: int) -> SumCost:
        """As many at once."""
        return SumCost(self.largest * rows, self.operations * rows)

    def fits(self, settings: Enumerate) -> bool:
        """Whether it is within the budget."""
        return self.largest <= settings.max_elements and self.operations <= settings.max_operations


def marginal_sites(trial: Trial) -> list[Site]:
    """Latent sites that the model has and the guide does not."""
    drawn = latent_sites(trial.guide_trace)
    return [Site(m) for n, m in latent_sites(trial.model_trace).items() if n not in drawn]


def marginal_settings(sites: list[Site], selection: Selection) -> dict[str, Enumerate]:
    """How each of these sites is summed out. Raises `SiteMatchError` if one cannot be, or is to be sampled."""
    settings = {}
    for site in sites:
        refuse_unguided(site.name, site.distribution)
        choice, why = selection.wanted(site)
        exact = isinstance(choice, Enumerate) or choice in (None, AUTO, Enumerate.name)
        if not exact and why in ("by name", "the site's infer"):
            name = choice if isinstance(choice, str) else getattr(choice, "name", choice)
            raise SiteMatchError(
                f"Estimator {name!r} was asked for at site {site.name!r}, which is latent in the model but not drawn "
                "in the guide: there are no draws to learn from. Draw it in the guide too, or leave it out of the "
                "dict to have it marginalised exactly."
            )
        settings[site.name] = choice if isinstance(choice, Enumerate) else Enumerate()
        check_table(site.message, settings[site.name], marginal=True)
    return settings


def settle_marginals(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate]) -> tuple[SumCost, frozenset[str]]:
    """Try the sum once, without contracting it: what it will cost for one row, and the sites whose terms are in it.

    Raises `EnumerationError` if the program mixes values in leading dims, if a site outside a plate depends on one of
    these inside it, or if the cost is beyond the budget.
    """
    sites = [s for s in marginal_sites(trial) if s.name in settings]
    crossed = crossing_site(pair, trial, sites)
    if crossed is not None:
        outer, inner = crossed
        raise EnumerationError(
            f"Site {outer!r} outside a plate depends on site {inner.name!r} inside it, which is in the model alone: "
            f"all joint values of the plate's elements would have to be summed over. Draw {inner.name!r} in the guide "
            "too."
        )
    names = ", ".join(repr(s.name) for s in sites[:5]) + (", ..." if len(sites) > 5 else "")
    verdict = check_rows(pair, trial, 1, only=settings.keys())
    reason = verdict.reason
    cost, members = SumCost(), frozenset[str]()
    if verdict:
        try:
            with torch.no_grad(), trial.subsamples:
                marginalise = Marginalise(latent_sites(trial.guide_trace), settings, trial.batch_dims)
                replayed = poutine.replay(marginalise(pair.model), trace=trial.guide_trace)
                trace = poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)
                for component in components(trace, marginalise, trial.batch_dims)[0]:
                    cost = cost.beside(within_budget(component, settings))
                    members = members.union(f.name for f in component.factors)
            return cost, members
        except DiscreteInferenceError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise NoLeadingDimsError(
        f"Sites of the model alone ({names}) are summed out over leading dims, which the program cannot take "
        f"({reason}). Index from the right so that dims on the left broadcast, or draw them in the guide too."
    )


def settle(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate]) -> tuple[SumCost, frozenset[str], bool]:
    """As `settle_marginals`, or else by a run for each joint value; and whether that is the way.

    Raises `EnumerationError` if neither can be had.
    """
    try:
        return *settle_marginals(pair, trial, settings), False
    except NoLeadingDimsError as error:
        reason = str(error)
    drawn = latent_sites(trial.guide_trace)
    try:
        with torch.no_grad(), trial.subsamples:
            replayed = poutine.replay(pair.model, trace=trial.guide_trace)
            traces = list(joint_traces(replayed, drawn, pair.args, pair.kwargs))
    except EnumerationError as other:
        why = str(other).splitlines()[0]
        raise EnumerationError(f"{reason} One joint value after another cannot be had either: {why}") from None
    numbers = [sum(m["value"].numel() for m in sample_sites(trace).values()) for trace in traces]
    return SumCost(max(numbers), sum(numbers)), frozenset(from_first(traces[0], drawn)), True


def within_budget(component: Component, settings: Mapping[str, Enumerate]) -> SumCost:
    """A component's cost. Raises `EnumerationError` if it is beyond the budget of its sites' settings."""
    cost = component_cost(component)
    allowed = [settings[name] for name in component.sites if name in settings] or [Enumerate()]
    if not any(cost.fits(each) for each in allowed):
        budget = max(allowed, key=lambda e: e.max_elements)
        sites = ", ".join(map(repr, component.sites[:6])) + (", ..." if len(component.sites) > 6 else "")
        raise EnumerationError(
            f"Summing out {len(component.sites)} site(s) of the model alone together ({sites}) needs a largest table "
            f"of {cost.largest:.3g} elements and {cost.operations:.3g} operations a row; at most "
            f"{budget.max_elements:.3g} and {budget.max_operations:.3g} are allowed (Enumerate(max_elements=..., "
            "max_operations=...)). Put chains in pyro.markov and independent sites in a pyro.plate, or draw some of "
            "these sites in the guide too, by 'rloo' or 'nvil'."
        )
    return cost


def component_cost(component: Component) -> SumCost:
    """The cost of contracting a component, found by going the same way with the sizes alone."""
    ring = SizesAlone()
    contract(component, ring)
    tables = [f.value.numel() for f in component.factors]
    return SumCost(max(ring.largest, *tables), ring.operations + sum(tables))

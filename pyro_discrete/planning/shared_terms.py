"""Plate elements that share later terms: which are to be moved one at a time, and the rows that this takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from pyro_discrete.errors import SharedTermsError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.costs import SiteCosts
from pyro_discrete.programs.dims import Layout
from pyro_discrete.programs.sites import Site, family_of, latent_sites
from pyro_discrete.sums.marginalisation import Group

__all__ = [
    "SharedTerms",
    "check_rows_apart",
]


Plates = Mapping[str, int]
"""Plates by name, with their sizes."""


class SharedTerms:
    """Of each site of the guide the plates whose elements share later terms, as a trial's costs show them.

    - `sums`: over sites of the model alone, each of which is one term.
    - `met`: what steps have met in spite of an earlier trial.
    """

    def __init__(
        self,
        trial: Trial,
        objective: Objective,
        layout: Layout,
        known: Dependencies,
        sums: Sequence[Group],
        met: Mapping[str, Plates],
    ) -> None:
        self._trial, self._objective, self._layout = trial, objective, layout.block()
        self._known, self._sums, self._met = known, sums, met

    @cached_property
    def _costs(self) -> SiteCosts:
        trial = self._trial
        drawn = [n for n, m in latent_sites(trial.guide_trace).items() if family_of(m["fn"]) is not None]
        chosen = dict.fromkeys(drawn, Reinforce())  # whichever: terms are the same
        with torch.no_grad():
            return self._objective.evaluate(
                trial.guide_trace,
                trial.model_trace,
                chosen,
                self._layout,
                trial.batch_dims,
                dependencies=self._known,
            ).costs

    def of(self, site: Site) -> Plates:
        """The plates of the site whose elements share terms that its draw may change."""
        plates = frozenset(p for p in site.plates if p.vectorized)
        if not plates:
            return {}
        crossed = self._costs.crossed_plates(site.name)
        for members, inside in self._sums:
            if any(self._known.influences(site.name, ("model", name)) for name in members):
                crossed |= {p for p in plates if p.name not in inside}
        met = self._met.get(site.name, {})
        found = {p.name: max(p.size, met.get(p.name, 0)) for p in plates if p in crossed or p.name in met}
        return {**met, **found}

    def certainly_none(self, site: Site) -> bool:
        """Whether it is known that the site's elements share no later term."""
        return not any(p.vectorized for p in site.plates) or (self._known.known and not self.of(site))


def check_rows_apart(name: str, estimator: Estimator, elements: int, rows: int, objective: Objective) -> int:
    """The rows of a site, with those of each of so many elements that are moved one at a time.

    Raises `SharedTermsError` for more than the estimator's `max_rows`, or one that reads slopes: a row's slope would be
    that of all elements.
    """
    total = 1 + elements * (rows - 1)
    if elements == 1:
        return total
    start = (
        f"Estimator {estimator.name!r} judges the elements of site {name!r}'s plates one by one, but these share later "
        f"terms, so that each of the {elements} is to be moved while the others stay"
    )
    if estimator.relaxed or estimator.sloped:
        raise SharedTermsError(
            f"{start}, which it cannot with relaxed rows or slopes. {objective.instead_of_separable}"
        )
    if total > estimator.max_rows:
        raise SharedTermsError(
            f"{start}: that takes {total} rows a particle (1 + {elements} x {rows - 1}), more than "
            f"max_rows={estimator.max_rows}. Allow them, {type(estimator).__name__}(max_rows={total}), or use smaller "
            f"batches. {objective.instead_of_separable}"
        )
    return total

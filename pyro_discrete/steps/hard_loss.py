"""The loss with hard draws, whichever estimator trains: one row a particle, in blocks where there are many."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.softening import corner
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import Columns
from pyro_discrete.programs.pair import KeepSubsamples, Pair
from pyro_discrete.programs.sites import Site
from pyro_discrete.relaxations.relaxed_distribution import hard_value, one_hot_site
from pyro_discrete.steps.outcome import Outcome
from pyro_discrete.steps.placing import PlaceColumn, PlaceRows, Primary
from pyro_discrete.steps.run import _chooser, evaluated

__all__ = [
    "AT_ONCE",
    "run_hard",
]


AT_ONCE = 2**22
"""How many numbers `loss()` draws and scores at a time, sites' values of all rows counted."""


_PLAIN = Reinforce()


class _Hardened(Reinforce):
    """Draws as a relaxed estimator does, and rounds to the corner behind the draw."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    @staticmethod
    def instead_of(estimator: Estimator | None) -> Reinforce:
        """What draws hard values in an estimator's place."""
        if estimator is None or 0 not in estimator.relaxed or not estimator.draws_from_guide:
            return _PLAIN
        return _Hardened(estimator)

    def draw(self, site: SiteView) -> Draw:
        if not isinstance(site, Site) or site.family is Family.COUNT:  # a relaxed count's support is truncated
            return super().draw(site)
        soft = self.estimator.draw(one_hot_site(site)).value[:1].detach()
        return Draw(hard_value(site.distribution, corner(soft, one_hot=site.family is not Family.BERNOULLI)))


def run_hard(plan: Plan, pair: Pair, objective: Objective) -> Outcome:
    """The objective with hard draws, one row; a relaxed draw is hardened, so that its noise is the same.

    No more than `AT_ONCE` numbers of the sites' values are held at a time: more particles are run in blocks, of which
    only the terms that the objective needs are kept, and no traces.
    """
    dependencies = plan.dependencies(pair) if objective.reads_dependencies else UNKNOWN
    pair = objective.around(pair, training=False)
    choose = _chooser(plan, lambda site: _Hardened.instead_of(plan.estimators.get(site.name)))
    layout = plan.layout.of(1, {})
    if plan.path == "vectorised" and 1 < layout.size <= max(1, AT_ONCE // plan.elements):
        placing = PlaceRows(choose, Columns(), layout, plan.batch_dims)
        evaluation = evaluated(pair, plan, objective, placing, layout, dependencies=dependencies)
        return Outcome(evaluation.loss / plan.particles, 0.0, [evaluation])
    subsamples, evaluations = None, []
    rows = max(1, AT_ONCE // plan.elements) if plan.path == "vectorised" else 1
    for blocks in layout.blocks(rows):
        parts: list[Evaluation] = []
        given: dict[str, Tensor] = {}
        for block in blocks:
            if plan.path == "vectorised":
                placing = PlaceRows(choose, Columns(), block, plan.batch_dims, given=given)
            else:
                placing = PlaceColumn(choose, Primary(), block, plan.batch_dims, given=given)
            parts.append(evaluated(pair, plan, objective, placing, block, subsamples, dependencies))
            given = given or placing.shared
            if layout.size > 1:
                subsamples = subsamples or KeepSubsamples.of(parts[-1].guide_trace, parts[-1].model_trace)
                parts[-1] = parts[-1].light()
        evaluations.append(objective.join(parts))
    loss = sum((e.loss for e in evaluations), start=0.0)
    return Outcome(loss / plan.particles, 0.0, evaluations)

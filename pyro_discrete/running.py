"""One step: run the program over its rows, cost each site, and combine what the estimators make of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_discrete.chunked import check_chunks, run_chunks
from pyro_discrete.chunked_bound import run_bound_chunks
from pyro_discrete.draws.softening import corner
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.objectives.importance import ImportanceBound
from pyro_discrete.one_run import StructureChangedError, evaluated
from pyro_discrete.outcome import (
    Outcome,
    Pending,
    contexts_of,
    filled_draw,
    over,
    site_cost,
    untended_part,
)
from pyro_discrete.planning.plan import Plan
from pyro_discrete.planning.products import in_product
from pyro_discrete.programs.dims import ROWS_PLATE, Columns
from pyro_discrete.programs.pair import KeepSubsamples, Pair
from pyro_discrete.programs.sites import Site
from pyro_discrete.relaxations.relaxed_distribution import hard_value, one_hot_site, state_trials
from pyro_discrete.rows import PlaceColumn, PlaceRows, Primary
from pyro_discrete.sequential import run_columns
from pyro_discrete.slopes import slopes_by_row

__all__ = ["AT_ONCE", "run_hard", "run_step"]

AT_ONCE = 2**22
"""How many numbers `loss()` draws and scores at a time, sites' values of all rows counted."""

Adopt = Callable[[Site], Estimator]
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


def run_step(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    adopt: Adopt,
    dependencies: Dependencies | None = None,
    row_chunk: int | None = None,
) -> Outcome:
    """A training step's loss and surrogate, in chunks of `row_chunk` rows. `adopt(site)` gives a site's estimator.

    Where `dependencies` are given no tensor's value is looked at, so that the step can be captured.
    """
    found = plan.dependencies(pair) if dependencies is None else dependencies
    pair = objective.around(pair, training=True)
    choose = _chooser(plan, adopt, read=dependencies is None)
    if row_chunk is not None:
        check_chunks(plan)

        def run_part(part: Plan, pair: Pair, objective: Objective = objective) -> Outcome:
            return _run_rows(part, pair, objective, choose, found)

        if isinstance(objective, ImportanceBound):
            return run_bound_chunks(run_part, plan, pair, objective, row_chunk)
        return run_chunks(run_part, plan, pair, row_chunk)
    run = _run_rows if plan.path == "vectorised" else run_columns
    return run(plan, pair, objective, choose, found)


def _chooser(plan: Plan, adopt: Adopt, read: bool = True) -> Callable[[Site], Estimator | None]:
    def choose(site: Site) -> Estimator | None:
        dims = len(site.distribution.batch_shape) - (
            1 if any(f.name == ROWS_PLATE for f in site["cond_indep_stack"]) else 0
        )
        if dims > plan.batch_dims:
            raise StructureChangedError(f"site {site.name!r} is in more plates than before", dims)
        if site.family is None:
            return None
        estimator = adopt(site)
        if estimator.relaxed or estimator.sloped:
            state_trials(site, plan.largest, read)
        return estimator

    return choose


def _run_rows(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    choose: Callable[[Site], Estimator | None],
    dependencies: Dependencies,
) -> Outcome:
    """Every row and particle at once."""
    columns, particles = plan.columns, plan.particles
    layout = plan.layout.of(columns.count, columns.owned)
    estimators = {name: e for name, e in plan.estimators.items() if e is not None}
    soft = {columns.rows_of(n)[r] for n, e in estimators.items() for r in e.relaxed if r > 0}
    placing = PlaceRows(choose, columns, layout, plan.batch_dims, soft, dependencies.downstream)
    evaluation = evaluated(pair, plan, objective, placing, layout, dependencies=dependencies)
    outcome = Outcome(over(evaluation.loss, particles), over(evaluation.path, particles), [evaluation])
    contexts = contexts_of(evaluation, plan, pair)
    slopes = slopes_by_row(evaluation, placing.resampled, placing.draws, placing.chosen, columns, layout)
    outcome.draws = [draw.value for draw in placing.draws.values()]
    for name, draw in placing.draws.items():
        estimator, site = placing.chosen[name], placing.sites[name]
        cost = layout.split(site.plates, site_cost(evaluation, name, estimator, objective))
        if len(rows := columns.rows_of(name)) < columns.count:
            cost = cost[rows]
        slope = slopes.get(name, {})
        filled = filled_draw(draw, site, estimator, evaluation, objective, layout, contexts, slope)
        if members := columns.products.get(name):
            own, scores = columns.owned[name], evaluation.scores
            log_q = {m: layout.split(placing.sites[m].plates, scores[m])[own] for m in members}
            filled = in_product(filled, name, log_q)
        outcome.pending.append(Pending(estimator, filled, cost))
    if evaluation.untended:
        outcome.surrogate = outcome.surrogate + over(untended_part(evaluation, evaluation, layout), particles)
    return outcome

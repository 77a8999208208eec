"""A step whose rows and particles are all run at once, along a leading dim."""

from __future__ import annotations

from collections.abc import Callable

from pyro_discrete.estimators.base import Estimator
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.planning.products import in_product
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import Site
from pyro_discrete.steps.costing import contexts_of, filled_draw, site_cost, slopes_by_row, untended_part
from pyro_discrete.steps.outcome import Outcome, Pending, over
from pyro_discrete.steps.placing import PlaceRows
from pyro_discrete.steps.run import evaluated


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

"""A training step, whichever way the plan goes: its loss, and what the estimators make the gradient of."""

from __future__ import annotations

from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.importance import ImportanceBound
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.chunks import check_chunks, run_bound_chunks, run_chunks
from pyro_discrete.steps.outcome import Outcome
from pyro_discrete.steps.run import Adopt, _chooser
from pyro_discrete.steps.sequential import run_columns
from pyro_discrete.steps.vectorised import _run_rows

__all__ = [
    "run_step",
]


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

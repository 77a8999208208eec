"""The objective with hard draws, one row a particle; a relaxed draw is hardened, so that its noise is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import Columns, Layout
from pyro_discrete.programs.pair import KeepSubsamples, Pair
from pyro_discrete.steps.choice import HardChoice
from pyro_discrete.steps.outcome import Outcome
from pyro_discrete.steps.placing import PlaceColumn, PlaceRows, Primary, Shared
from pyro_discrete.steps.run import evaluated, run_pair

__all__ = [
    "AT_ONCE",
    "hard_loss_of_columns",
    "hard_loss_of_rows",
]


AT_ONCE = 2**22
"""How many numbers `loss()` draws and scores at a time, sites' values of all rows counted."""


def hard_loss_of_rows(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The loss of one row for each particle, as many at once as `AT_ONCE` allows.

    More particles are run in blocks, of which only the terms that the objective needs are kept, and no traces.
    """
    choice, layout = HardChoice(plan), plan.layout.of(1, {})

    def place(block: Layout, given: Mapping[str, Shared]) -> PlaceRows:
        return PlaceRows(choice, Columns(), block, plan.batch_dims, given=given)

    rows = max(1, AT_ONCE // max(1, plan.elements))
    if 1 < layout.size <= rows:
        evaluation = _evaluated(plan, pair, objective, place(layout, {}), known)
        return Outcome(evaluation.loss / plan.particles, 0.0, [evaluation])
    return _in_blocks(plan, pair, objective, known, rows, place)


def hard_loss_of_columns(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The same, one particle after the other without a leading dim."""
    choice = HardChoice(plan)

    def place(block: Layout, given: Mapping[str, Tensor]) -> PlaceColumn:
        return PlaceColumn(choice, Primary(), block, plan.batch_dims, given=given)

    return _in_blocks(plan, pair, objective, known, 1, place)


Placing = PlaceRows | PlaceColumn


def _in_blocks(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    known: Dependencies,
    rows: int,
    place: Callable[[Layout, Any], Placing],
) -> Outcome:
    layout, subsamples, evaluations = plan.layout.of(1, {}), None, []
    for blocks in layout.blocks(rows):
        parts: list[Evaluation] = []
        given: Mapping[str, Any] = {}
        for block in blocks:
            placing = place(block, given)
            parts.append(_evaluated(plan, pair, objective, placing, known, subsamples))
            given = given or placing.shared
            if layout.size > 1:
                subsamples = subsamples or KeepSubsamples.of(parts[-1].guide_trace, parts[-1].model_trace)
                parts[-1] = parts[-1].light()
        evaluations.append(objective.join(parts))
    loss = sum((e.loss for e in evaluations), start=0.0)
    return Outcome(loss / plan.particles, 0.0, evaluations)


def _evaluated(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    placing: Placing,
    known: Dependencies,
    subsamples: KeepSubsamples | None = None,
) -> Evaluation:
    traces = run_pair(plan, pair, placing, known, subsamples, objective.additive)
    return evaluated(plan, objective, traces, placing, known)

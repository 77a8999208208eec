"""A step with every row and particle at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import E, Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.costing import hand_over, untended_part
from pyro_discrete.steps.hard_loss import hard_loss_of_rows
from pyro_discrete.steps.outcome import Outcome, over
from pyro_discrete.steps.placing import PlaceRows, Shared
from pyro_discrete.steps.run import evaluated, run_pair

__all__ = [
    "Rows",
    "evaluate",
    "train",
    "train_rows",
]


@dataclass(frozen=True)
class Rows(Generic[E]):
    """A run of all rows: its outcome, what the objective makes of it, and what inner particles have in common."""

    outcome: Outcome
    evaluation: E
    shared: Mapping[str, Shared]


def train(plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
    """A training step's loss, and what its estimators are to combine."""
    return train_rows(plan, pair, objective, choice, known).outcome


def train_rows(
    plan: Plan,
    pair: Pair,
    objective: Objective[E],
    choice: Choice,
    known: Dependencies,
    given: Mapping[str, Shared] | None = None,
) -> Rows[E]:
    """The same, with its run; inner particles share what is `given`."""
    layout = plan.rows_layout
    placing = PlaceRows(
        choice, plan.columns, layout, plan.batch_dims, plan.soft_columns, known.downstream, given
    )  # 2: who draws what, where
    traces = run_pair(plan, pair, placing, known, analytic=objective.additive)  # 3: guide once, model once
    evaluation = evaluated(plan, objective, traces, placing, known)  # 4: the loss, and the terms of the costs
    outcome = Outcome(
        over(evaluation.loss, plan.particles),
        over(evaluation.pathwise, plan.particles),
        [evaluation],
        hand_over(plan, pair, objective, placing, evaluation),  # 4: each site's draw beside its cost
        [draw.value for draw in placing.draws.values()],
    )
    if evaluation.untended:
        outcome.surrogate = outcome.surrogate + over(untended_part(evaluation, evaluation, layout), plan.particles)
    return Rows(outcome, evaluation, placing.shared)


def evaluate(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The objective with hard draws."""
    return hard_loss_of_rows(plan, pair, objective, known)

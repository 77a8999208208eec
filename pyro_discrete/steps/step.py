"""One training step: the route from a plan to a surrogate, whichever way the plan says that it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.evidence import EvidenceBound
from pyro_discrete.planning.plan import (
    Chunked,
    ChunkedBound,
    Elementwise,
    Exact,
    Jointly,
    OneByOne,
    Parallel,
    Plan,
    Sequential,
    Vectorised,
    Way,
)
from pyro_discrete.programs.module_state import SameState
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps import bound_chunks, chunks, plain, sequential, vectorised
from pyro_discrete.steps.choice import Choice, TrainingChoice
from pyro_discrete.steps.enumerated.elementwise import elementwise_loss
from pyro_discrete.steps.enumerated.jointly import joint_loss
from pyro_discrete.steps.enumerated.parallel import enumerated_loss
from pyro_discrete.steps.outcome import Outcome

__all__ = [
    "WAYS",
    "evaluate_step",
    "train_step",
]


class Steps(Protocol):
    """How the steps of one way go: see `steps/vectorised.py`, the usual one."""

    train: Callable[[Plan, Pair, Objective, Choice, Dependencies], Outcome]
    evaluate: Callable[[Plan, Pair, Objective, Dependencies], Outcome]


class ExactSteps:
    """The steps of an exact way: its loss `[]`, differentiable, is its own surrogate."""

    def __init__(self, loss: Callable[[Plan, Pair, Dependencies], Tensor]) -> None:
        self.loss = loss

    def train(self, plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
        """The loss, with nothing left for estimators to combine."""
        return Outcome.exact(self.loss(plan, pair, known))

    def evaluate(self, plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
        """The loss."""
        return Outcome.exact(self.loss(plan, pair, known))


WAYS: Mapping[type[Way], Steps] = {
    Vectorised: vectorised,
    Sequential: sequential,
    Chunked: chunks,
    ChunkedBound: bound_chunks,
    Parallel: ExactSteps(enumerated_loss),
    OneByOne: ExactSteps(enumerated_loss),
    Jointly: ExactSteps(joint_loss),
    Elementwise: ExactSteps(elementwise_loss),
}


@contextmanager
def same_state(plan: Plan, pair: Pair, training: bool = True) -> Iterator[Pair]:
    """The pair for a step that runs it several times: each run starts from one state, the first one's is left."""
    same = SameState(plan.state)
    with same.around(pair) as again:
        yield again
    if training or isinstance(plan.way, Exact):
        plan.met.runs = same.runs


def train_step(
    plan: Plan,  # 1: each site's estimator and the way of a step, made at the pair's first call
    pair: Pair,
    objective: Objective,
    choice: TrainingChoice,
    known: Dependencies,
    check: Callable[[Outcome], None],
) -> Outcome:
    """One training step. Whatever looks at a tensor's value is in `check`: a captured step has none.

    Within `train`, in this order: 2 place the guide's draws in their rows, 3 run the guide and the model once,
    4 turn their terms into each site's cost and hand it to its estimator. Raises `StructureChangedError` from there.
    """
    if isinstance(objective, EvidenceBound) and plain.is_plain(plan, objective):
        outcome = plain.train(plan, pair, objective, choice, known)  # 2, 3, 4, where each site is drawn once
    else:
        outcome = _trained(plan, pair, objective, choice, known)
    check(outcome)  # the loss, before anything is learned from it
    if torch.is_grad_enabled():
        outcome.combine(plan.particles)  # 5: estimator.surrogate(draw, cost), site by site
    return outcome


def _trained(plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
    """A training step in its plan's own way."""
    pair, steps = objective.around(plan.counts.around(pair), training=True), WAYS[type(plan.way)]
    if plan.runs_once():
        return steps.train(plan, pair, objective, choice, known)  # 2, 3, 4
    with same_state(plan, pair) as runs:
        return steps.train(plan, runs, objective, choice, known)


def evaluate_step(plan: Plan, pair: Pair, objective: Objective, watched: Pair | None = None) -> Outcome:
    """The discrete objective, by exact sums or hard draws, whatever the estimators.

    `watched`: the pair as it is to be run, if what it does is noted. Raises `MoreTermsError` where a sum over a count
    has to go further.
    """
    known = plan.dependencies(pair) if objective.reads_dependencies or isinstance(plan.way, Exact) else UNKNOWN
    pair, steps = objective.around(plan.counts.around(watched or pair), training=False), WAYS[type(plan.way)]
    if plan.runs_once(training=False):
        outcome = steps.evaluate(plan, pair, objective, known)
    else:
        with same_state(plan, pair, training=False) as runs:
            outcome = steps.evaluate(plan, runs, objective, known)
    plan.counts.judge()
    return outcome

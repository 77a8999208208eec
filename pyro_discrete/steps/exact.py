"""Steps whose loss is an exact sum: it is its own surrogate, and the same in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.outcome import Outcome

__all__ = [
    "ExactSteps",
]


class ExactSteps:
    """The steps of an exact way, by its `loss` of a plan, a pair and what is known of it: `[]`, differentiable."""

    def __init__(self, loss: Callable[[Plan, Pair, Dependencies], Tensor]) -> None:
        self.loss = loss

    def train(self, plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
        """The loss, with nothing left for estimators to combine."""
        return Outcome.exact(self.loss(plan, pair, known))

    def evaluate(self, plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
        """The loss."""
        return Outcome.exact(self.loss(plan, pair, known))

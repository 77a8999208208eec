"""The importance-weighted bound in chunks of its particles: weighed all together, run and differentiated in parts.

The log-weights of all particles are found first, chunk by chunk and without a graph; then each chunk is run again, on
the same random numbers, beside the weights of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Weights
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.importance import BoundEvaluation
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair, random_state
from pyro_discrete.steps import chunks, vectorised
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.chunks import (
    drawn_again,
    on_same_data,
    rows_of_chunk,
    sizes,
    summed_gradients,
    whole_loss,
)
from pyro_discrete.steps.outcome import Outcome, over, with_gradient

__all__ = [
    "evaluate",
    "train",
]


def train(
    plan: Plan, pair: Pair, objective: Objective[BoundEvaluation], choice: Choice, known: Dependencies
) -> Outcome:
    """A training step's outcome by chunks of at most so many rows (and at least one particle of every outer sample)."""
    parts = sizes(plan.layout.inner or 1, rows_of_chunk(plan) // (plan.columns.count * plan.particles))
    same_data = on_same_data(pair)
    states: list[Any] = []
    weighed: list[BoundEvaluation] = []
    with torch.no_grad():  # first: every particle's weight
        for particles in parts:
            states.append(random_state())
            _, evaluation = vectorised.train_rows(_of_inner(plan, particles), same_data, objective, choice, known)
            _check(plan, evaluation)
            weighed.append(_weights_alone(evaluation))
        joined = objective.join(weighed)
    loss = over(joined.loss, plan.particles)
    if not whole_loss(loss):
        return Outcome(loss)

    def surrogates() -> Iterator[Tensor]:
        start = 0
        for part, particles in drawn_again(pair, same_data, parts, states):  # again: each chunk beside them
            beside = _Beside(objective, joined, start)
            outcome = vectorised.train(_of_inner(plan, particles), part, beside, choice, known)
            outcome.combine(plan.particles)
            yield torch.as_tensor(outcome.surrogate)
            start += particles

    targets, gradients = summed_gradients(surrogates())
    return Outcome(loss, with_gradient(torch.as_tensor(loss).new_zeros(()), targets, gradients) if targets else 0.0)


def evaluate(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The objective with hard draws."""
    return chunks.evaluate(plan, pair, objective, known)


def _check(plan: Plan, evaluation: BoundEvaluation) -> None:
    """Refuse what the particles of a bound have in common, or learn from each other."""
    if plan.layout.doubly:
        raise SettingError("row_chunk: dreg=True differentiates all weights at once; leave one of them out.")
    for name, estimator in plan.given.items():
        if estimator is not None and estimator.state_tensors():
            raise SettingError(
                f"row_chunk: estimator {estimator.name!r} of site {name!r} learns from all particles of a bound. Leave "
                "row_chunk out, or use 'vimco' or 'reinforce'."
            )
    for name in (*evaluation.scores, *evaluation.untended):
        if name not in evaluation.weighed.data:
            raise SettingError(
                f"row_chunk: all inner particles share site {name!r}, which is outside the data's plates. Leave "
                "row_chunk out, or num_particles at what fits."
            )


class _Beside(Objective[BoundEvaluation]):
    """The bound for the particles of one chunk, beside the weights of all."""

    additive, may_enumerate = False, False

    def __init__(self, bound: Objective[BoundEvaluation], joined: BoundEvaluation, start: int) -> None:
        self.bound, self.joined, self.start = bound, joined, start

    def evaluate(self, *args: Any, **kwargs: Any) -> BoundEvaluation:
        own = self.bound.evaluate(*args, **kwargs)
        particles = own.weighed.layout.inner or 1
        costs = own.costs.beside(self.joined.costs, self.start, particles)
        pathwise: Any = own.weighed.pathwise if self.start == 0 else 0.0
        for datum, log_weights in own.weighed.log_weights.items():
            total = self.joined.weighed.log_weights[datum].logsumexp(2, keepdim=True)
            share = (log_weights[:1].detach() - total).exp()
            pathwise = pathwise - own.weighed.scale * (share * log_weights[:1]).sum()
        return replace(own, costs=costs, pathwise=pathwise)

    def weights(self, evaluation: BoundEvaluation, name: str) -> Weights | None:
        return self.bound.weights(evaluation, name)


def _of_inner(plan: Plan, inner: int) -> Plan:
    return replace(plan, layout=replace(plan.layout, inner=inner))


def _weights_alone(evaluation: BoundEvaluation) -> BoundEvaluation:
    """What the other chunks need: the weights of the first column."""
    weighed, columns = evaluation.weighed, evaluation.weighed.layout.columns
    kept = {datum: w[:1].clone() for datum, w in weighed.log_weights.items()}
    first = [replace(t, value=t.value[: len(t.value) // columns]) for t in weighed.shared]
    layout = replace(weighed.layout, columns=1, owned={})
    weighed = replace(weighed, layout=layout, log_weights=kept, shared=first)
    return replace(evaluation, guide_trace=None, model_trace=None, scores={}, weighed=weighed)

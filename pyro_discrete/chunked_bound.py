"""A step of an importance-weighted bound whose inner particles are run in chunks.

The weights of all particles are found first, chunk by chunk and without a graph. Then each chunk is run again, on the
same random numbers: its particles beside the others' weights, its part of the bound's gradient by its particles' shares
of the total weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.chunked import drawn_again, on_same_data, sizes, summed_gradients
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Weights
from pyro_discrete.gradients import with_gradient
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.objectives.importance import BoundEvaluation, ImportanceBound
from pyro_discrete.outcome import Outcome, over
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair, random_state

__all__ = ["run_bound_chunks"]

RunBoundRows = Callable[[Plan, Pair, Objective], Outcome]


def _check(plan: Plan, evaluation: BoundEvaluation) -> None:
    """Refuse what the particles of a bound have in common, or learn from each other."""
    if plan.layout.doubly:
        raise SettingError("row_chunk: dreg=True differentiates all weights at once; leave one of them out.")
    for name, estimator in plan.estimators.items():
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


class _Beside(Objective):
    """The bound for the particles of one chunk, beside the weights of all."""

    additive, may_enumerate = False, False

    def __init__(self, bound: ImportanceBound, joined: BoundEvaluation, start: int) -> None:
        self.bound, self.joined, self.start = bound, joined, start

    def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
        own = self.bound.evaluate(*args, **kwargs)
        assert isinstance(own, BoundEvaluation)
        particles = own.weighed.layout.inner or 1
        costs = own.costs.beside(self.joined.costs, self.start, particles)  # type: ignore[attr-defined]
        path: Any = own.weighed.path if self.start == 0 else 0.0
        for datum, log_weights in own.weighed.log_weights.items():
            total = self.joined.weighed.log_weights[datum].logsumexp(2, keepdim=True)
            share = (log_weights[:1].detach() - total).exp()
            path = path - own.weighed.scale * (share * log_weights[:1]).sum()
        return replace(own, costs=costs, path=path)

    def weights(self, evaluation: Evaluation, name: str) -> Weights | None:
        return self.bound.weights(evaluation, name)


def run_bound_chunks(run: RunBoundRows, plan: Plan, pair: Pair, bound: ImportanceBound, rows: int) -> Outcome:
    """A training step's outcome by chunks of at most so many rows (and at least one particle of every outer sample)."""
    chunks = sizes(plan.layout.inner or 1, rows // (plan.columns.count * plan.particles))
    same_data = on_same_data(pair)
    states: list[Any] = []
    evaluations: list[BoundEvaluation] = []
    with torch.no_grad():
        for particles in chunks:
            states.append(random_state())
            (evaluation,) = run(_of_inner(plan, particles), same_data, bound).evaluations
            assert isinstance(evaluation, BoundEvaluation)
            _check(plan, evaluation)
            evaluations.append(_weights_alone(evaluation))
        joined = bound.join(evaluations)
    assert isinstance(joined, BoundEvaluation)

    def again() -> Iterator[Outcome]:
        start = 0
        for part, particles in drawn_again(pair, same_data, chunks, states):
            yield run(_of_inner(plan, particles), part, _Beside(bound, joined, start))
            start += particles

    return _ChunkedBound(over(joined.loss, plan.particles), again=again)


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


@dataclass
class _ChunkedBound(Outcome):
    """The loss of all particles; `again` runs the chunks with their graphs."""

    again: Callable[[], Iterator[Outcome]] = field(kw_only=True)

    def combine(self, particles: int) -> None:
        targets, gradients = summed_gradients(self._surrogates(particles))
        self.surrogate = with_gradient(torch.as_tensor(self.loss).new_zeros(()), targets, gradients) if targets else 0.0

    def _surrogates(self, particles: int) -> Iterator[Tensor]:
        for outcome in self.again():
            outcome.combine(particles)
            yield torch.as_tensor(outcome.surrogate)

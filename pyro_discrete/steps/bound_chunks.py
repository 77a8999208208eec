"""The importance-weighted bound in chunks of its particles: weighed all together, run and differentiated in parts.

The log-weights of all particles are found first, chunk by chunk and without a graph. What the estimators make of their
costs is found of all particles at once, so that what they learn is what they would learn from one run. Then each chunk
is run again, on the same random numbers, beside the weights of all. What the particles share is drawn by the first
chunk; the others take it, and the gradient that reaches it there goes back through the first one's draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Weights
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.importance import BoundEvaluation
from pyro_discrete.objectives.log_weights import doubly_weighted
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import Layout
from pyro_discrete.programs.pair import Pair, random_state
from pyro_discrete.steps import chunks, vectorised
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.chunks import (
    Combined,
    SummedGradients,
    cut_off,
    drawn_again,
    on_same_data,
    rows_of_chunk,
    sizes,
    wants_slopes,
    whole_loss,
)
from pyro_discrete.steps.costing import cost_of_rows
from pyro_discrete.steps.outcome import Outcome, Pending, over
from pyro_discrete.steps.placing import Shared

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
    runs: list[list[Pending]] = []
    weighed: list[BoundEvaluation] = []
    shared: Mapping[str, Shared] = {}
    with torch.set_grad_enabled(wants_slopes(plan)):  # first: every particle's weight
        for particles in parts:
            states.append(random_state())
            run = vectorised.train_rows(_of_inner(plan, particles), same_data, objective, choice, known, shared)
            runs.append(cut_off(run.outcome.pending))
            _check_slopes(plan, runs[-1])
            weighed.append(_weights_alone(run.evaluation))
            shared = shared or {name: each.cut_off(to_leaves=False) for name, each in run.shared.items()}
            del run  # before the next one begins
        joined = objective.join(weighed)
    loss = over(joined.loss, plan.particles)
    if not whole_loss(loss):
        return Outcome(loss)
    combined = _combined(plan, objective, joined, runs)  # then: what the estimators make of them
    runs.clear()
    gradients, start = SummedGradients(), 0
    drawn: Mapping[str, Shared] = {}
    given: Mapping[str, Shared] = {}
    for part, particles in drawn_again(pair, same_data, parts, states):  # again: each chunk beside them
        beside = _Beside(objective, joined, start)
        run = vectorised.train_rows(_of_inner(plan, particles), part, beside, choice, known, given)
        if start == 0:
            drawn, given = run.shared, {name: each.cut_off() for name, each in run.shared.items()}
        weighted, keep = combined.weighted(run.outcome, start, particles), bool(drawn) and start == 0
        gradients.add(weighted, run.outcome.draws, keep_graph=keep)
        start += particles
        del run
    gradients.add(_through_shared(drawn, given, gradients))
    return combined.outcome(torch.as_tensor(loss), gradients)


def evaluate(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The objective with hard draws."""
    return chunks.evaluate(plan, pair, objective, known)


def _combined(
    plan: Plan, objective: Objective[BoundEvaluation], joined: BoundEvaluation, runs: Sequence[Sequence[Pending]]
) -> Combined:
    """What the estimators make of the costs of all particles, as those of one run have them."""
    layout = plan.layout.of(plan.columns.count, plan.columns.owned)
    by_site: dict[str, list[Pending]] = {}
    for each in (pending for run in runs for pending in run):
        by_site.setdefault(each.name, []).append(each)
    pending, dims = [], []
    for name, parts in by_site.items():
        dims.append(None if layout.shares(parts[0].plates) else 1)
        whole = parts[0] if len(parts) == 1 else chunks.joined(parts, dim=1)
        cost = cost_of_rows(joined, name, whole.estimator, whole.plates, plan.columns, layout)
        draw = whole.draw.replace(weights=objective.weights(joined, name))
        pending.append(replace(whole, draw=draw, cost=cost.detach()))
    return Combined.of(pending, plan.particles, dims)


def _through_shared(drawn: Mapping[str, Shared], given: Mapping[str, Shared], gradients: SummedGradients) -> Tensor:
    """What takes the gradients that reached the shared values in later chunks to where these were drawn."""
    total = torch.zeros(())
    for name, each in drawn.items():
        for tensor, leaf in zip(each.tensors(), given[name].tensors(), strict=True):
            gradient = gradients.take(leaf)
            if gradient is not None:
                total = total + (tensor * gradient).sum()
    return total


class _Beside(Objective[BoundEvaluation]):
    """The bound for the particles of one chunk, beside the weights of all."""

    additive, may_enumerate = False, False

    def __init__(self, bound: Objective[BoundEvaluation], joined: BoundEvaluation, start: int) -> None:
        self.bound, self.joined, self.start = bound, joined, start

    def evaluate(self, guide_trace: Any, model_trace: Any, chosen: Any, layout: Layout, *args: Any) -> BoundEvaluation:
        """See `Objective.evaluate`; the loss is that of the chunk by itself."""
        own = self.bound.evaluate(guide_trace, model_trace, chosen, layout, *args)
        weighed, known = own.weighed, self.joined.weighed.log_weights
        costs = own.costs.beside(self.joined.costs, self.start, weighed.layout.inner or 1)
        bound: Any = 0.0
        for datum, log_weights in weighed.log_weights.items():
            share = (log_weights[:1].detach() - known[datum][:1].logsumexp(2, keepdim=True)).exp()
            bound = bound - weighed.scale * (share * log_weights[:1]).sum()
        values = [replace(value, first=self.start) for value in weighed.values]
        if values:
            bound = bound + doubly_weighted(bound, values, known)
        untended, pathwise = own.untended, weighed.pathwise
        if self.start > 0:  # what is shared, the first chunk has
            untended, pathwise = {n: score for n, score in untended.items() if n in weighed.data}, 0.0
        costs = replace(costs, outer=self.joined.costs.outer)
        return replace(own, costs=costs, pathwise=bound + pathwise, untended=untended)

    def weights(self, evaluation: BoundEvaluation, name: str) -> Weights | None:
        return self.bound.weights(evaluation, name)


def _of_inner(plan: Plan, inner: int) -> Plan:
    return replace(plan, layout=replace(plan.layout, inner=inner))


def _weights_alone(evaluation: BoundEvaluation) -> BoundEvaluation:
    """What is needed of a chunk's particles beside the others: their weights, and the scores that all share."""
    weighed = evaluation.weighed
    weights = {datum: w.detach() for datum, w in weighed.log_weights.items()}
    shared = [term._replace(value=term.value.detach()) for term in weighed.shared]
    weighed = replace(weighed, log_weights=weights, shared=shared, pathwise=0.0, values=[], keep_graph=False)
    scores = {name: score.detach() for name, score in evaluation.scores.items() if name not in weighed.data}
    return replace(evaluation.light(), scores=scores, untended={}, pathwise=0.0, weighed=weighed)


def _check_slopes(plan: Plan, pending: Sequence[Pending]) -> None:
    """Refuse what needs the slopes of a bound in which all particles move."""
    for each in pending:
        if not (each.estimator.slope_rows or each.estimator.differentiates_costs):
            continue
        shared = plan.layout.shares(each.plates)
        if shared or not each.estimator.particles_apart:
            what = "which they share, " if shared else ""
            raise SettingError(
                f"row_chunk: estimator {each.estimator.name!r} of site {each.name!r}, {what}reads slopes of a bound of "
                "all particles together, which chunks do not keep. Leave row_chunk out, or use 'vimco' or 'reinforce'."
            )

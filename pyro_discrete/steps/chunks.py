"""A step whose rows are run in chunks: the gradient is that of all particles at once, the memory that of one chunk.

The costs of all particles are found first, chunk by chunk and without a graph. The estimators combine them - all
particles, so that each is another's baseline - into what multiplies the gradient of every score; with these weights
each chunk is run again, on the same random numbers, and differentiated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Weights
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.objectives.importance import BoundEvaluation, ImportanceBound
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import KeepSubsamples, Pair, random_state, set_random_state
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.steps.outcome import Outcome, Pending, over, with_gradient

__all__ = [
    "check_chunks",
    "drawn_again",
    "on_same_data",
    "run_bound_chunks",
    "run_chunks",
    "sizes",
    "summed_gradients",
]


RunRows = Callable[[Plan, Pair], Outcome]


Parts = dict[tuple[int, str], Tensor]
"""Tensors of the pending draws, by the draw's place and the name of its part."""


def check_chunks(plan: Plan) -> None:
    """Refuse a plan that cannot be run in chunks."""
    if plan.path != "vectorised":
        raise SettingError(f"row_chunk: the rows of this step are not run at once anyway ({plan.path}); leave it out.")
    for name, estimator in plan.estimators.items():
        if estimator is not None and (estimator.slope_rows or estimator.differentiates_costs):
            raise SettingError(
                f"row_chunk: estimator {estimator.name!r} of site {name!r} differentiates the costs of all rows, which "
                "chunks do not keep. Leave row_chunk out, or use an estimator without relaxed rows."
            )


def run_chunks(run: RunRows, plan: Plan, pair: Pair, rows: int) -> Outcome:
    """A training step's outcome by chunks of at most so many rows (and at least one particle)."""
    chunks, same_data = sizes(plan.particles, rows // plan.columns.count), on_same_data(pair)
    states, outcomes = [], []
    with torch.no_grad():
        for particles in chunks:
            states.append(random_state())
            outcome = run(_of_size(plan, particles), same_data)
            outcomes.append(replace(outcome, evaluations=[], draws=[]))
    loss = over(sum(o.loss * n for o, n in zip(outcomes, chunks, strict=True)), plan.particles)
    pending = [_joined(parts) for parts in zip(*(o.pending for o in outcomes), strict=True)]

    def again() -> Iterator[tuple[int, Outcome]]:
        for part, particles in drawn_again(pair, same_data, chunks, states):
            yield particles, run(_of_size(plan, particles), part)

    return _Chunked(loss, 0.0, [], pending, again=again)


def sizes(total: int, most: int) -> list[int]:
    """How many particles each chunk has: as many as there may be, and at least one."""
    size = max(1, most)
    return [min(size, total - start) for start in range(0, total, size)]


def on_same_data(pair: Pair) -> Pair:
    """The pair, whose runs all see the subsamples of the first one."""
    kept = KeepSubsamples()
    return replace(pair, model=kept(pair.model), guide=kept(pair.guide))


def drawn_again(pair: Pair, same_data: Pair, chunks: list[int], states: list[Any]) -> Iterator[tuple[Pair, int]]:
    """What is to be run for each chunk, and its particles, in the random state in which it was run before.

    The first run drew the subsamples as well, from the same stream of random numbers: it has to draw them again.
    """
    after = random_state()
    for number, (particles, state) in enumerate(zip(chunks, states, strict=True)):
        set_random_state(state)
        yield on_same_data(pair) if number == 0 else same_data, particles
    set_random_state(after)


def _of_size(plan: Plan, particles: int) -> Plan:
    return replace(plan, particles=particles, layout=replace(plan.layout, particles=particles))


def _joined(parts: tuple[Pending, ...]) -> Pending:
    draw, first = Draw.join([p.draw for p in parts]), parts[0].draw
    if first.context is not None and len(first.context) == 1:
        draw = draw.replace(context=first.context)  # the particles share it
    return Pending(parts[0].estimator, draw, torch.cat([p.cost for p in parts], 1), parts[0].share)


@dataclass
class _Chunked(Outcome):
    """All particles' draws and costs without their graphs; `again` runs the chunks with them."""

    again: Callable[[], Iterator[tuple[int, Outcome]]] = field(kw_only=True)

    def combine(self, particles: int) -> None:
        parts: Parts = {}
        for place, pending in enumerate(self.pending):
            for name, tensor in _parts(pending.draw).items():
                parts[place, name] = tensor.detach().requires_grad_()
        waiting = [replace(p, draw=_with_parts(p.draw, i, parts)) for i, p in enumerate(self.pending)]
        combined = _Combined.of(waiting, particles)
        weights: Parts = {}
        if combined.loss.requires_grad:
            found = torch.autograd.grad(combined.loss, list(parts.values()), allow_unused=True, retain_graph=True)
            weights = {key: g for key, g in zip(parts, found, strict=True) if g is not None}
        targets, gradients = self._differentiated(weights, particles)
        self.draws, self.pending = list(parts.values()), []
        self.surrogate = combined.auxiliary
        if targets:
            self.surrogate = self.surrogate + with_gradient(combined.loss.new_zeros(()), targets, gradients)

    def _differentiated(self, weights: Parts, particles: int) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and their gradients, summed over the chunks."""
        return summed_gradients(self._weighted(weights, particles))

    def _weighted(self, weights: Parts, particles: int) -> Iterator[Tensor]:
        """Each chunk's part of the surrogate."""
        start = 0
        for size, outcome in self.again():
            total = torch.as_tensor(outcome.surrogate) * (size / particles)
            for place, pending in enumerate(outcome.pending):
                for name, tensor in _parts(pending.draw).items():
                    if (place, name) in weights and tensor.requires_grad:
                        total = total + (tensor * weights[place, name][start : start + size]).sum()
            start += size
            yield total


def summed_gradients(parts: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and their gradients, of a sum whose parts are differentiated one after the other."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for part in parts:
        if not part.requires_grad:
            continue
        leaves = leaf_parameters(part)
        for leaf, gradient in zip(leaves, torch.autograd.grad(part, leaves, allow_unused=True), strict=True):
            if gradient is not None:
                known = found.get(id(leaf))
                found[id(leaf)] = (leaf, gradient if known is None else known[1] + gradient)
    return [leaf for leaf, _ in found.values()], [gradient for _, gradient in found.values()]


@dataclass
class _Combined:
    """What the estimators made of their costs: the score's part, and what trains the estimators."""

    loss: Tensor
    auxiliary: Any

    @staticmethod
    def of(waiting: list[Pending], particles: int) -> _Combined:
        loss, auxiliary = torch.zeros(()), torch.zeros(())
        for each in waiting:
            surrogate = each.estimator.surrogate(each.draw, each.cost)
            loss = loss + over(torch.as_tensor(surrogate.loss).sum(), particles)
            if surrogate.auxiliary is not None:
                auxiliary = auxiliary + surrogate.auxiliary * each.share
        return _Combined(loss, auxiliary)


def _parts(draw: Draw) -> dict[str, Tensor]:
    """The tensors of a draw, `[K, ...]`, through which its surrogate may reach parameters."""
    parts = {"log_q": draw.log_q, "logits": draw.logits, **{f"extra {name}": t for name, t in draw.extra.items()}}
    return {name: t for name, t in parts.items() if t is not None and t.is_floating_point()}


def _with_parts(draw: Draw, place: int, parts: Parts) -> Draw:
    extra = {name: parts.get((place, f"extra {name}"), tensor) for name, tensor in draw.extra.items()}
    return draw.replace(log_q=parts.get((place, "log_q")), logits=parts.get((place, "logits")), extra=extra)


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

"""A step whose rows are run in chunks: the gradient is that of all particles at once, the memory that of one chunk.

The costs of all particles are found first, chunk by chunk and without a graph. The estimators combine them - all
particles, so that each is another's baseline - into what multiplies the gradient of every score; with these weights
each chunk is run again, on the same random numbers, and differentiated by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import ScoredDraw
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import Chunked, Plan, Sequential
from pyro_discrete.programs.pair import KeepSubsamples, Pair, random_state, set_random_state
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.steps import sequential, vectorised
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.outcome import Outcome, Pending, over, with_gradient

__all__ = [
    "drawn_again",
    "evaluate",
    "on_same_data",
    "rows_of_chunk",
    "sizes",
    "summed_gradients",
    "train",
    "whole_loss",
]


Parts = dict[tuple[int, str], Tensor]
"""Tensors of the pending draws, by the draw's place and the name of its part."""


def train(plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
    """A training step's outcome by chunks of at most so many rows (and at least one particle)."""
    chunks, same_data = sizes(plan.particles, rows_of_chunk(plan) // plan.columns.count), on_same_data(pair)
    states, costed = [], []
    with torch.no_grad():  # first: every particle's costs
        for particles in chunks:
            states.append(random_state())
            outcome = vectorised.train(_of_size(plan, particles), same_data, objective, choice, known)
            costed.append(replace(outcome, evaluations=[], draws=[]))
    loss = over(sum(o.loss * n for o, n in zip(costed, chunks, strict=True)), plan.particles)
    if not whole_loss(loss):
        return Outcome(loss)
    pending = [_joined(parts) for parts in zip(*(o.pending for o in costed), strict=True)]
    combined = _Combined.of(pending, plan.particles)  # then: what the estimators make of them

    def weighted() -> Iterator[Tensor]:
        start = 0
        for part, particles in drawn_again(pair, same_data, chunks, states):  # again: each chunk with its weights
            again = vectorised.train(_of_size(plan, particles), part, objective, choice, known)
            yield combined.weighted(again, start, particles, plan.particles)
            start += particles

    targets, gradients = summed_gradients(weighted())
    surrogate = combined.auxiliary
    if targets:
        surrogate = surrogate + with_gradient(combined.loss.new_zeros(()), targets, gradients)
    return Outcome(loss, surrogate, draws=list(combined.parts.values()))


def evaluate(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The objective with hard draws, which takes no more memory than it is allowed anyway."""
    assert isinstance(plan.way, Chunked)
    run = sequential if isinstance(plan.way.over, Sequential) else vectorised
    return run.evaluate(plan, pair, objective, known)


def rows_of_chunk(plan: Plan) -> int:
    """How many rows a chunk may have. Raises `SettingError` for a plan that cannot be run in chunks."""
    assert isinstance(plan.way, Chunked)
    if isinstance(plan.way.over, Sequential):
        raise SettingError(f"row_chunk: the rows of this step are not run at once anyway ({plan.path}); leave it out.")
    for name, estimator in plan.given.items():
        if estimator is not None and (estimator.slope_rows or estimator.differentiates_costs):
            raise SettingError(
                f"row_chunk: estimator {estimator.name!r} of site {name!r} differentiates the costs of all rows, which "
                "chunks do not keep. Leave row_chunk out, or use an estimator without relaxed rows."
            )
    return plan.way.rows


def whole_loss(loss: Any) -> bool:
    """Whether there is something to learn: a loss that is not finite is refused by who called, before that."""
    return torch.is_grad_enabled() and math.isfinite(float(loss))


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
    draw, first = ScoredDraw.join([p.draw for p in parts]), parts[0].draw
    if first.context is not None and len(first.context) == 1:
        draw = draw.replace(context=first.context)  # the particles share it
    return Pending(parts[0].estimator, draw, torch.cat([p.cost for p in parts], 1), parts[0].share)


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
    """What the estimators made of all particles' costs.

    - `loss`: the score's part. `auxiliary`: what trains the estimators. `parts`: the tensors of the draws that `loss`
      was made of. `weights`: what each of them multiplies in the gradient.
    """

    loss: Tensor
    auxiliary: Tensor
    parts: Parts
    weights: Parts

    @staticmethod
    def of(pending: list[Pending], particles: int) -> _Combined:
        parts: Parts = {}
        for place, each in enumerate(pending):
            for name, tensor in _parts(each.draw).items():
                parts[place, name] = tensor.detach().requires_grad_()
        loss, auxiliary = torch.zeros(()), torch.zeros(())
        for place, each in enumerate(pending):
            surrogate = each.estimator.surrogate(_with_parts(each.draw, place, parts), each.cost)
            loss = loss + over(torch.as_tensor(surrogate.loss).sum(), particles)
            if surrogate.auxiliary is not None:
                auxiliary = auxiliary + surrogate.auxiliary * each.share
        weights: Parts = {}
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(parts.values()), allow_unused=True, retain_graph=True)
            weights = {key: g for key, g in zip(parts, found, strict=True) if g is not None}
        return _Combined(loss, auxiliary, parts, weights)

    def weighted(self, outcome: Outcome, start: int, size: int, particles: int) -> Tensor:
        """A chunk's part of the surrogate, of the particles from `start` on."""
        total = torch.as_tensor(outcome.surrogate) * (size / particles)
        for place, pending in enumerate(outcome.pending):
            for name, tensor in _parts(pending.draw).items():
                if (place, name) in self.weights and tensor.requires_grad:
                    total = total + (tensor * self.weights[place, name][start : start + size]).sum()
        return total


def _parts(draw: ScoredDraw) -> dict[str, Tensor]:
    """The tensors of a draw, `[K, ...]`, through which its surrogate may reach parameters."""
    parts = {"log_q": draw.log_q, "logits": draw.logits, **{f"extra {name}": t for name, t in draw.extra.items()}}
    return {name: t for name, t in parts.items() if t is not None and t.is_floating_point()}


def _with_parts(draw: ScoredDraw, place: int, parts: Parts) -> ScoredDraw:
    extra = {name: parts.get((place, f"extra {name}"), tensor) for name, tensor in draw.extra.items()}
    return draw.replace(log_q=parts.get((place, "log_q")), logits=parts.get((place, "logits")), extra=extra)

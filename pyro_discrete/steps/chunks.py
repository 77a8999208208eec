"""A step whose rows are run in chunks: the gradient is that of all particles at once, the memory that of one chunk.

The costs of all particles are found first, chunk by chunk and without a graph. The estimators combine them - all
particles, so that each is another's baseline - into what multiplies the gradient of every score; with these weights
each chunk is run again, on the same random numbers, and differentiated by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import ScoredDraw, Surrogate
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import Chunked, Plan, Sequential
from pyro_discrete.programs.pair import KeepSubsamples, Pair, random_state, set_random_state
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.steps import sequential, vectorised
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.outcome import Outcome, Pending, over, with_gradient

__all__ = [
    "Combined",
    "SummedGradients",
    "cut_off",
    "drawn_again",
    "evaluate",
    "joined",
    "on_same_data",
    "rows_of_chunk",
    "sizes",
    "train",
    "wants_slopes",
    "whole_loss",
]


Parts = dict[tuple[str, str], Tensor]
"""Tensors of the pending draws, by the site and the name of its part."""


def train(plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
    """A training step's outcome by chunks of at most so many rows (and at least one particle)."""
    chunks, same_data = sizes(plan.particles, rows_of_chunk(plan) // plan.columns.count), on_same_data(pair)
    states, costed, loss = [], [], 0.0
    with torch.set_grad_enabled(wants_slopes(plan)):  # first: every particle's costs
        for particles in chunks:
            states.append(random_state())
            outcome = vectorised.train(_of_size(plan, particles), same_data, objective, choice, known)
            loss = loss + over(outcome.loss, plan.particles) * particles
            costed.append(cut_off(outcome.pending))
            del outcome  # before the next one begins
    if not whole_loss(loss):
        return Outcome(loss)
    # then: what the estimators make of them, of which the weights alone are kept
    combined = Combined.of([joined(parts) for parts in zip(*costed, strict=True)], plan.particles)
    del costed
    gradients, start = SummedGradients(), 0
    for part, particles in drawn_again(pair, same_data, chunks, states):  # again: each chunk with its weights
        again = vectorised.train(_of_size(plan, particles), part, objective, choice, known)
        again.surrogate = torch.as_tensor(again.surrogate) * (particles / plan.particles)
        gradients.add(combined.weighted(again, start, particles), again.draws)
        start += particles
        del again
    return combined.outcome(torch.as_tensor(loss), gradients)


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
        if estimator is not None and estimator.differentiates_costs and not estimator.particles_apart:
            raise SettingError(
                f"row_chunk: estimator {estimator.name!r} of site {name!r} differentiates the costs of all particles "
                "together, which chunks do not keep. Leave row_chunk out, or use 'rloo' or 'nvil'."
            )
    return plan.way.rows


def wants_slopes(plan: Plan) -> bool:
    """Whether a run without a graph does not give all that the estimators combine."""
    return torch.is_grad_enabled() and any(e is not None and e.slope_rows for e in plan.given.values())


def cut_off(pending: Sequence[Pending]) -> list[Pending]:
    """The same without the graph of their run."""
    return [replace(each, draw=_without_graph(each.draw), cost=each.cost.detach()) for each in pending]


def _without_graph(draw: ScoredDraw) -> ScoredDraw:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach()

    return draw.replace(
        value=draw.value.detach(),
        point=None,
        logits=cut(draw.logits),
        log_q=cut(draw.log_q),
        extra={name: tensor.detach() for name, tensor in draw.extra.items()},
        slopes={row: slope.detach() for row, slope in draw.slopes.items()},
    )


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


def joined(parts: Sequence[Pending], dim: int = 0) -> Pending:
    """What chunks of one site's particles are to combine, as that of all; they are in `dim` of log q."""
    if dim:
        for each in parts:
            _check_extra(each, dim)
    draw, first = ScoredDraw.join([p.draw for p in parts], dim), parts[0].draw
    if first.context is not None and len(first.context) == 1:
        draw = draw.replace(context=first.context)  # the particles share it
    return replace(parts[0], draw=draw, cost=torch.cat([p.cost for p in parts], 1 + dim))


def _check_extra(pending: Pending, dim: int) -> None:
    """Raise `SettingError` where an estimator's own tensors do not say which particle each number is of."""
    draw, batch = pending.draw, tuple(pending.cost.shape[1:])
    for name, tensor in draw.extra.items():
        shape = list(tensor.shape)
        if name in draw.by_rows:
            del shape[1]
        if tuple(shape[: len(batch)]) != batch:
            raise SettingError(
                f"row_chunk: estimator {pending.estimator.name!r} of site {pending.name!r} hands on {name!r} of shape "
                f"{tuple(tensor.shape)}, where [K, *batch, ...] = {list(batch)} is expected in front. Leave row_chunk "
                "out, or have its draw() keep these dims."
            )


class SummedGradients:
    """Parameters and their gradients, of a sum whose parts are differentiated one after the other."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, part: Tensor, draws: Sequence[Tensor] = (), keep_graph: bool = False) -> None:
        """Take in a part, of whose leaves `draws` are no parameters; its graph is freed, unless it is to be kept."""
        if not part.requires_grad:
            return
        drawn = {id(draw) for draw in draws}
        leaves = [leaf for leaf in leaf_parameters(part) if id(leaf) not in drawn]
        if not leaves:
            return
        found = torch.autograd.grad(part, leaves, allow_unused=True, retain_graph=keep_graph)
        for leaf, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                known = self._found.get(id(leaf))
                self._found[id(leaf)] = (leaf, gradient if known is None else known[1] + gradient)

    def take(self, leaf: Tensor) -> Tensor | None:
        """The gradient of a leaf that stands for something else, which is no parameter."""
        return self._found.pop(id(leaf), (leaf, None))[1]

    def surrogate(self, loss: Tensor) -> Tensor | float:
        """What has these gradients, and the value zero."""
        if not self._found:
            return 0.0
        found = self._found.values()
        return with_gradient(torch.zeros_like(loss), [leaf for leaf, _ in found], [gradient for _, gradient in found])


@dataclass
class Combined:
    """What the estimators made of all particles' costs.

    - `dims`: where the particles of a site are in its log q, None where they share it. `by_rows`: see `Draw`.
    - `auxiliary`: what trains the estimators. `parts`: the tensors of the draws that it was made of. `weights`: what
      each of a draw's tensors multiplies in the gradient.
    """

    dims: dict[str, int | None]
    by_rows: dict[str, frozenset[str]]
    auxiliary: Tensor
    parts: Parts
    weights: Parts

    particles: int

    @staticmethod
    def of(pending: Sequence[Pending], particles: int, dims: Sequence[int | None] = ()) -> Combined:
        """Let the estimators combine their costs, of so many independent particles."""
        parts: Parts = {}
        where = dict(zip((each.name for each in pending), dims or [0] * len(pending), strict=True))
        by_rows = {each.name: each.draw.by_rows for each in pending}
        pending = [each for each in pending if not each.estimator.particles_apart]
        for each in pending:
            for name, tensor in _parts(each.draw).items():
                parts[each.name, name] = tensor.detach().requires_grad_()
        loss, auxiliary = torch.zeros(()), torch.zeros(())
        for each in pending:
            surrogate = _surrogate(each, parts)
            loss = loss + over(torch.as_tensor(surrogate.loss).sum(), particles)
            if surrogate.auxiliary is not None:
                auxiliary = auxiliary + surrogate.auxiliary * each.share
        weights: Parts = {}
        if loss.requires_grad:
            found = torch.autograd.grad(
                loss, list(parts.values()), allow_unused=True, retain_graph=auxiliary.requires_grad
            )
            weights = {key: g for key, g in zip(parts, found, strict=True) if g is not None}
        kept = parts if auxiliary.requires_grad else {}
        return Combined(where, by_rows, auxiliary, kept, weights, particles)

    def weighted(self, outcome: Outcome, start: int, size: int) -> Tensor:
        """The surrogate of a chunk of so many particles, from `start` on, whose own part is the outcome's."""
        total = torch.as_tensor(outcome.surrogate)
        for again in outcome.pending:
            dim = self.dims[again.name]
            if dim is None and start > 0:
                continue
            if again.estimator.particles_apart:
                share = size / self.particles if dim == 0 else 1.0
                here = Outcome(pending=[replace(again, share=share)])
                here.combine(self.particles)
                total = total + here.surrogate
                continue
            for name, tensor in _parts(again.draw).items():
                weights = self.weights.get((again.name, name))
                if weights is None or not tensor.requires_grad or (name == VALUE and tensor.is_leaf):
                    continue
                if dim is not None:
                    in_rows = dim > 0 and name.removeprefix(EXTRA) in self.by_rows[again.name]
                    where = dim + 1 if name == VALUE or in_rows else dim
                    weights = weights.narrow(where, start, size)
                total = total + (tensor * weights).sum()
        return total

    def outcome(self, loss: Tensor, gradients: SummedGradients) -> Outcome:
        """The step's, with what is differentiated already."""
        surrogate = self.auxiliary + gradients.surrogate(loss.new_zeros(()))
        return Outcome(loss, surrogate, draws=list(self.parts.values()))


def _surrogate(pending: Pending, parts: Parts) -> Surrogate:
    try:
        return pending.estimator.surrogate(_with_parts(pending, parts), pending.cost)
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise SettingError(
            f"row_chunk: estimator {pending.estimator.name!r} of site {pending.name!r} differentiates one tensor of "
            "its draw in another, a graph that chunks do not keep. Leave row_chunk out, or have it train nothing "
            "(learn=False)."
        ) from error


EXTRA, VALUE = "extra ", "value"


def _parts(draw: ScoredDraw) -> dict[str, Tensor]:
    """The tensors of a draw, `[K, ...]`, through which its surrogate may reach parameters."""
    parts = {
        VALUE: draw.value,
        "log_q": draw.log_q,
        "logits": draw.logits,
        **{EXTRA + name: t for name, t in draw.extra.items()},
    }
    return {name: t for name, t in parts.items() if t is not None and t.is_floating_point()}


def _with_parts(pending: Pending, parts: Parts) -> ScoredDraw:
    draw, name = pending.draw, pending.name
    extra = {key: parts.get((name, EXTRA + key), tensor) for key, tensor in draw.extra.items()}
    value = parts.get((name, VALUE), draw.value)
    return draw.replace(
        value=value, log_q=parts.get((name, "log_q")), logits=parts.get((name, "logits")), extra=extra, parts=()
    )

"""What a step gives: its loss, draws and costs that are still to be combined, and then the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate
from pyro_discrete.objectives.base import Evaluation
from pyro_discrete.programs.dims import Frames
from pyro_discrete.programs.parameters import leaf_parameters

__all__ = [
    "Outcome",
    "Pending",
    "StepGradients",
    "added",
    "over",
    "plus",
    "with_gradient",
]


@dataclass
class StepGradients:
    """The loss of one step, and the gradient estimate.

    - `loss`: `[]`, detached.
    - `parameters`, `gradients`: leaf tensors, and for each a gradient of its shape.
    - `idle`: leaf tensors that the loss is made of, but has no gradient for.
    - `inputs`: arguments of the program that require a gradient, each with it.
    """

    loss: Tensor
    parameters: list[Tensor]
    gradients: list[Tensor]
    inputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    idle: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of(loss: Tensor, targets: Iterable[Tensor], gradients: Iterable[Tensor | None], inputs: Any) -> StepGradients:
        """From gradients for `targets`, some of which may be stand-ins for the arguments that `inputs` maps them to."""
        result = StepGradients(loss, [], [])
        for target, gradient in zip(targets, gradients, strict=True):
            if gradient is None:
                result.idle.append(target)
            elif id(target) in inputs:
                result.inputs.append((inputs[id(target)], gradient))
            else:
                result.parameters.append(target)
                result.gradients.append(gradient)
        return result

    def agrees_with(self, other: StepGradients) -> bool:
        """Whether two results of one step are the same up to rounding (on one processor they are, bit for bit)."""
        ours, theirs = self._by_target(), other._by_target()
        if ours.keys() != theirs.keys():
            return False
        return _close(self.loss, other.loss) and all(_close(ours[key], theirs[key]) for key in ours)

    def _by_target(self) -> dict[int, Tensor]:
        pairs = [*zip(self.parameters, self.gradients, strict=True), *self.inputs]
        return {id(target): gradient for target, gradient in pairs}

    def accumulate(self) -> float:
        """Add the gradient to each parameter's `.grad`, as `backward` does; returns the loss."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
        if self.inputs:
            arguments, gradients = zip(*self.inputs, strict=True)
            torch.autograd.backward(arguments, gradients)
        return self.loss.item()

    def differentiable(self) -> Tensor:
        """The loss as a scalar with this gradient; once differentiable."""
        targets = [*self.parameters, *(argument for argument, _ in self.inputs)]
        gradients = [*self.gradients, *(gradient for _, gradient in self.inputs)]
        return with_gradient(self.loss, targets, gradients)


def with_gradient(loss: Tensor, targets: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """A scalar of the loss's value, whose gradients on `targets` are given."""
    return _WithGradient.apply(loss, gradients, *targets)  # type: ignore[return-value]


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *targets: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        return (None, None, *(outer[0] * gradient for gradient in ctx.gradients))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if torch.equal(a, b) or a.numel() == 0:
        return True
    return bool((a - b).abs().max() <= 32 * torch.finfo(a.dtype).eps * a.abs().max())


@dataclass(frozen=True)
class Pending:
    """A site's draw and its costs, to be combined; `share` is the part of the site's particles that are in it.

    `name` and `plates`: the site's, of a run of all rows.
    """

    estimator: Estimator
    draw: ScoredDraw
    cost: Tensor
    share: float = 1.0
    name: str = ""
    plates: Frames = frozenset()

    def combined(self) -> Surrogate:
        """What the estimator makes of it."""
        cost = self.cost
        if cost.requires_grad and not self.estimator.differentiates_costs:
            cost = cost.detach()
        return self.estimator.surrogate(self.draw, cost)


_NOTHING = 0.0


@dataclass
class Outcome:
    """A step's loss (mean over particles, detached), and its surrogate, whose gradient is the estimate.

    - `pending`: what the estimators have still to combine. `draws`: values that slopes are taken at.
    - `terms`: terms of the surrogate that are still to be summed, each the sum of those of one shape (`added`).
    """

    loss: Tensor | float = _NOTHING
    surrogate: Tensor | float = _NOTHING
    evaluations: list[Evaluation] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)
    terms: dict[Sequence[int], Tensor] = field(default_factory=dict)

    @staticmethod
    def exact(loss: Tensor) -> Outcome:
        """Of an exact loss, which is its own surrogate."""
        return Outcome(loss.detach(), loss)

    def leaves(self) -> list[Tensor]:
        """The parameters that the surrogate depends on, wherever they live; draws that slopes are taken at are none."""
        drawn = {id(value) for value in self.draws}
        return [leaf for leaf in leaf_parameters(torch.as_tensor(self.surrogate)) if id(leaf) not in drawn]

    def traces(self) -> list[tuple[str, Trace]]:
        """The guide's and the model's traces of every run."""
        pairs = [p for e in self.evaluations for p in (("guide", e.guide_trace), ("model", e.model_trace))]
        return [(where, trace) for where, trace in pairs if trace is not None]

    def combine(self, particles: int) -> None:
        """Let the estimators combine their costs. They learn from them on the way: the loss is to be checked before."""
        combined = [(each.share, each.combined()) for each in self.pending]
        parts = [torch.as_tensor(surrogate.loss) for _, surrogate in combined]
        terms, self.terms, self.pending = self.terms, {}, []
        # the graph has its sites in one order, by which an optimiser that goes on finds its parameters
        if all(surrogate.auxiliary is None for _, surrogate in combined):
            together = dict(terms)
            for part in parts:
                added(together, part)
            if len(together) == 1:
                self.surrogate = plus(self.surrogate, over(next(iter(together.values())).sum(), particles))
                return
        if terms:
            self.surrogate = plus(self.surrogate, over(reduce(add, [each.sum() for each in terms.values()]), particles))
        for part, (share, surrogate) in zip(parts, combined, strict=True):
            total = over(part.sum(), particles)
            if surrogate.auxiliary is not None:
                total = total + surrogate.auxiliary * share  # a mean over its own particles
            self.surrogate = plus(self.surrogate, total)


def added(terms: dict[Sequence[int], Tensor], term: Tensor) -> None:
    """Add a term, which is to be summed, to the one of its shape: leading dims of size 1 make no difference."""
    shape = term.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    known = terms.get(shape)
    terms[shape] = term if known is None else known + term


def plus(total: Any, part: Any) -> Any:
    """The sum of both, without an operation where there is no total yet."""
    return part if total is _NOTHING else total + part


def over(total: Any, particles: int) -> Any:
    """The mean over particles of a sum, without an operation where there is one particle."""
    return total if particles == 1 else total * (1 / particles)  # a factor's slope takes half the time of a divisor's

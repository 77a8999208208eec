"""A generated program with its right answers, and how an answer of the engine is held against them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete.elbos.collapse import collapse
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.iwelbo import TraceIWELBO
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.testing.generated_programs.description import Description
from pyro_discrete.testing.generated_programs.oracle import Answer, gradients_of
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["TOLERANCE", "Case", "DisagreementError", "Engine", "SkippedError", "written"]

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Engine:
    """What is tested; tests put wrong ones here."""

    elbo: Callable[..., Any] = TraceELBO
    bound: Callable[..., Any] = TraceIWELBO
    posterior: Callable[..., Any] = DiscretePosterior
    collapse: Callable[..., Any] = collapse


class DisagreementError(Exception):
    """A check met another answer than the right one."""


class SkippedError(Exception):
    """A check does not apply."""


@dataclass
class Case:
    """A program with its right answers."""

    description: Description
    engine: Engine
    pair: Pair
    right: list[Answer]

    def gradients(self, elbo: Any) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients of a step."""
        for leaf in self.pair.parameters.values():
            leaf.grad = None
        loss = elbo.loss_and_grads(self.pair.model, self.pair.guide, *self.pair.args)
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.pair.parameters.items()}
        return loss, found

    def all_zero(self) -> AbstractContextManager[None]:
        """Within, all that the program is given, or finds among its variables, is zero, but for what is learned."""
        seen = [*self.pair.args, *(v for f in (self.pair.model, self.pair.guide) for v in _variables(f).values())]
        held = {id(v): v for v in seen if isinstance(v, Tensor) and not v.requires_grad}
        return _changed(held.values(), Tensor.zero_)

    def moved(self) -> AbstractContextManager[None]:
        """Within, what is learned has other values: of the other sign, which branches may hang on."""
        return _changed(self.pair.parameters.values(), lambda leaf: leaf.mul_(-0.9))

    def collapsed(self, model: Any) -> tuple[float, dict[str, Tensor]]:
        """Minus the log-probability of a run of the model by itself, and its gradients."""
        total = torch.as_tensor(poutine.trace(model).get_trace(*self.pair.args).log_prob_sum())
        return -total.item(), gradients_of(-total, self.pair.parameters)

    def loss(self, elbo: Any) -> float:
        return elbo.loss(self.pair.model, self.pair.guide, *self.pair.args)

    def nearest(self, loss: float) -> Answer:
        """The answer, of those for each subsample, whose loss it is."""
        best = min(self.right, key=lambda a: abs(a.loss - loss))
        if not math.isclose(loss, best.loss, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            several = f" (or another of {len(self.right)} subsamples)" if len(self.right) > 1 else ""
            raise DisagreementError(f"loss {loss:.6f}, right is {best.loss:.6f}{several}")
        return best

    def compare(self, loss: float, found: Mapping[str, Tensor]) -> None:
        """Raise where the loss and the gradients are not those of an answer."""
        best = self.nearest(loss)
        alike = [a for a in self.right if math.isclose(a.loss, best.loss, rel_tol=1e-5, abs_tol=1e-5)]
        problems = [first_difference(found, a.gradients) for a in alike]
        if all(problems):
            raise DisagreementError(f"the loss is right, {problems[0]}")

    def needs_bound(self) -> None:
        """Raise SkippedError where no bound of all data jointly can be compared with."""
        if self.description.thinned or "scale" in self.description.handlers:
            raise SkippedError("scales of the whole program stand outside of a bound")
        if len(self.right) > 1 or len(self.right[0].losses) > 32:
            raise SkippedError("too many pairs of joint values")


@contextmanager
def _changed(tensors: Iterable[Tensor], change: Callable[[Tensor], Any]) -> Iterator[None]:
    """Within, these tensors have other values."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        with torch.no_grad():
            for tensor, _ in before:
                change(tensor)
        yield
    finally:
        with torch.no_grad():
            for tensor, own in before:
                tensor.copy_(own)


def _variables(program: Any) -> Mapping[str, Any]:
    """The variables of the file that a program, a function or a method, is from."""
    return getattr(getattr(program, "__func__", program), "__globals__", {})


def first_difference(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    for name, gradient in right.items():
        if not torch.allclose(found[name], gradient, rtol=TOLERANCE, atol=TOLERANCE):
            return f"gradient of {name} {written(found[name])}, right is {written(gradient)}"
    return ""


def written(value: Tensor) -> str:
    """The numbers of a tensor, to be read."""
    return str([round(v, 6) for v in value.flatten().tolist()])

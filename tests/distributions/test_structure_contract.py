"""Structures that are wrong on purpose fail the contract, each by the check that is about it."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions import (
    DecisionGraph,
    DecisionLayer,
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    Structure,
)
from pyro_discrete.draws.gumbel import gumbel_like
from pyro_discrete.testing import assert_contract, check_structure


class AtAnotherTemperature(PlackettLuce):
    def _draw(self, shape: torch.Size) -> Tensor:
        return PlackettLuce(0.8 * self.logits, self.length)._draw(shape)


class NotNormalised(KSubset):
    def log_mass(self, vertex: Tensor) -> Tensor:
        return self.weight(vertex)


class FreshScoresSorted(PlackettLuce):
    """Noise that keeps the ranking and has another law."""

    def perturb_given(self, value: Tensor) -> Tensor:
        scores = super().perturb_given(value)
        fresh = (self._floored() + gumbel_like(scores)).sort(-1, descending=True).values
        return torch.empty_like(scores).scatter(-1, self._complete(value), fresh)


class NoiseOfTheTakenAlone(LinearChain):
    """Noise at the arcs of the path that is drawn, as if others had none of their own: it jumps where one flips."""

    def _taken(self, value: Tensor) -> Tensor:
        vertex = self.vertex(value)
        first, links = vertex[..., 0, 0, :], vertex[..., 1:, :, :]
        visited = links.sum(-1, keepdim=True).expand(links.shape)
        return torch.cat([torch.ones_like(first), visited.flatten(-3)], -1)

    def perturb(self) -> Tensor:
        noise = super().perturb()
        return torch.where(self._taken(self.read(noise)) > 0, noise, 0.0)

    def perturb_given(self, value: Tensor) -> Tensor:
        return torch.where(self._taken(value) > 0, super().perturb_given(value), 0.0)


class ForgetsTheValue(SequentialMatching):
    def perturb_given(self, value: Tensor) -> Tensor:
        return self.expand(value.shape[:-1]).perturb()


class MarginalsOfIndependentItems(KSubset):
    def marginals(self) -> Tensor:
        return self.k * self.logits.softmax(-1)


class PlainRecursion(KSubset):
    """Sums by torch's logaddexp, whose slope is no number where both are -inf."""

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        sums = [torch.zeros_like(logits[..., 0]), *[torch.full_like(logits[..., 0], -math.inf)] * self.k]
        for item in logits.unbind(-1):
            sums = [sums[0], *(torch.logaddexp(a, b + item) for b, a in itertools.pairwise(sums))]
        return sums[-1], *super()._make_tables(logits)[1:]


class AnyIntegers(GibbsMatching):
    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.n - 1), 1)


class BestMatching(SequentialMatching):
    """Soft values by Sinkhorn: their limit is the best matching, not the one that row after row reads."""

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        scores = noise.unflatten(-1, (self.n, self.n)) / temperature
        for _ in range(200):
            scores = scores.log_softmax(-1).log_softmax(-2)
        return scores.exp()


class MixesTheBatch(PlackettLuce):
    def log_prob(self, value: Tensor) -> Tensor:
        found = super().log_prob(value)
        return found.flip(-1) if self.batch_shape else found


class CountsTwice(PlackettLuce):
    @property
    def cardinality(self) -> float:
        return 2 * super().cardinality


class StaysInDouble(KSubset):
    def log_mass(self, vertex: Tensor) -> Tensor:
        return super().log_mass(vertex).double()


class WorstValue(GibbsMatching):
    def argmax(self, scores: Tensor) -> Tensor:
        return super().argmax(-torch.where(scores > -math.inf, scores, 0.0))


class KeepsItsTables(LinearChain):
    """Tables that are kept for ever, used up or not."""

    @property
    def tables(self) -> tuple[Tensor, ...]:
        if "held" not in self.__dict__:
            self.held = self._make_tables(self.logits)
        return self.held


class SoftOfPairsAlone(LinearChain):
    """Each link softened by itself: what flows into a state does not flow out of it."""

    def _flow(self, first: Tensor, shares: Tensor) -> Tensor:
        return torch.cat([self._from_row_0(first), shares / self.states], -3)


PLANTED: dict[type[Structure], str] = {
    AtAnotherTemperature: "frequencies of draws",
    NotNormalised: "log-masses sum to one",
    FreshScoresSorted: "noise given a value has the law of noise that brought it",
    NoiseOfTheTakenAlone: "slope of a mean over noise, pathwise and given the value",
    ForgetsTheValue: "noise given a value stands for it",
    MarginalsOfIndependentItems: "marginals",
    PlainRecursion: "is finite",
    AnyIntegers: "nothing else of the same numbers is",
    BestMatching: "soft values near temperature 0 are the vertices read",
    MixesTheBatch: "log-masses of element 0 alone",
    CountsTwice: "number of values",
    StaysInDouble: "log-masses keep single precision",
    WorstValue: "log-mass of the mode",
    KeepsItsTables: "backward through the graph a second time",
    SoftOfPairsAlone: "what is constant over vertices is so at soft values",
}


@pytest.mark.parametrize("structure", PLANTED)
def test_planted_structures_fail(structure: type[Structure]) -> None:
    report = check_structure(structure, draws=20_000)
    assert any(PLANTED[structure] in line for line in report.failures), report
    with pytest.raises(AssertionError, match=structure.__name__):
        assert_contract(report)


class ChoiceUnderBudget(DecisionGraph):
    """Items of whole weights, as many as a budget carries: p proportional to the product of the exp(logit) taken.

    A user's own structure: states are what is spent, arcs leave an item or take it.
    """

    soft_value = "weights"

    def __init__(
        self, logits: Tensor, weights: tuple[int, ...], budget: int, *, validate_args: bool | None = None
    ) -> None:
        self.weights, self.budget = weights, budget
        super().__init__(logits, validate_args=validate_args)

    def _settings(self) -> dict[str, Any]:
        return {"weights": self.weights, "budget": self.budget}

    def layers(self) -> tuple[DecisionLayer, ...]:
        return budget_layers(self.weights, self.budget)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return WithinBudget(self.weights, self.budget)

    @property
    def cardinality(self) -> float:
        return float(len(self._support_list()))

    def _support_list(self) -> Tensor:
        every = torch.cartesian_prod(*[torch.arange(2)] * len(self.weights))
        return every[self.support.check(every)].to(self.logits.dtype)

    def vertex(self, value: Tensor) -> Tensor:
        return value.to(self.logits.dtype)

    def value_of(self, vertex: Tensor) -> Tensor:
        return vertex

    def _draw(self, shape: torch.Size) -> Tensor:
        return super()._draw(shape).to(self.logits.dtype)

    def read(self, noise: Tensor) -> Tensor:
        return super().read(noise).to(noise.dtype)

    def argmax(self, scores: Tensor) -> Tensor:
        return super().argmax(scores).to(scores.dtype)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor([0.3, -0.9, 1.1, 0.2], dtype=torch.float64)
        masked = logits.index_fill(0, torch.tensor([2]), -math.inf)
        return [cls(each, (2, 1, 3, 2), 5) for each in (logits, masked, torch.stack([logits, -logits]))]


@lru_cache
def budget_layers(weights: tuple[int, ...], budget: int) -> tuple[DecisionLayer, ...]:
    spent = torch.arange(budget + 1)
    layers = []
    for item, weight in enumerate(weights):
        after = torch.where(spent + weight <= budget, spent + weight, -1)
        logit = torch.tensor([-1, item]).expand(budget + 1, 2)
        layers.append(DecisionLayer(torch.stack([spent, after], -1), logit, torch.arange(2).expand(budget + 1, 2)))
    return tuple(layers)


class WithinBudget(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def __init__(self, weights: tuple[int, ...], budget: int) -> None:
        self.weights, self.budget = torch.tensor(weights), budget

    def check(self, value: Tensor) -> Tensor:
        return ((value == 0) | (value == 1)).all(-1) & ((value * self.weights).sum(-1) <= self.budget)


@pytest.mark.statistical
def test_a_structure_of_ones_own_keeps_the_protocol() -> None:
    """A right structure fails with probability 1e-4, all comparisons together, under a fixed seed."""
    assert_contract(check_structure(ChoiceUnderBudget, draws=20_000))

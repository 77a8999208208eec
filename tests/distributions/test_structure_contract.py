"""Structures that are wrong on purpose fail the contract, each by the check that is about it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions import (
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    Structure,
)
from pyro_discrete.draws.gumbel import gumbel_like
from pyro_discrete.testing import assert_contract, check_structure
from tests.support.structures import ChoiceUnderBudget, NoiseOfTheTakenAlone


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


@pytest.mark.statistical
def test_a_structure_of_ones_own_keeps_the_protocol() -> None:
    """A right structure fails with probability 1e-4, all comparisons together, under a fixed seed."""
    assert_contract(check_structure(ChoiceUnderBudget, draws=20_000))

"""Wrong estimators, each wrong in one known way, fail the contract; right ones, made alike, pass.

What must not alarm does so falsely with a probability of at most 3e-6 in each report of a right estimator and 5e-7 in
the losses of each wrong one: 2e-5 in all.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_discrete import DisARM, TraceELBO
from pyro_discrete.errors import NonFiniteError
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate
from pyro_discrete.families import Family
from pyro_discrete.testing import assert_contract, check_elbo, check_estimator, programs
from pyro_discrete.testing.contract import auxiliary_leaks
from pyro_discrete.testing.extremes import bernoulli_extremes, compare_precisions, forced_expectation

PROGRAMS = {p.name: p for p in programs()}


class ScoreFunction(Estimator):
    """The right one, from which each planted error departs."""

    name = "planted"
    summary = "score function"
    reference = "none"

    def weight(self, draw, cost):
        return cost

    def surrogate(self, draw, cost):
        return Surrogate(draw.score * self.weight(draw, cost[0].detach()))


class UpdateBeforeRead(ScoreFunction):
    """A running mean that has seen the very draw whose cost it is taken from."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def weight(self, draw, cost):
        self.mean = cost.mean() if self.mean is None else 0.95 * self.mean + 0.05 * cost.mean()
        return cost - self.mean


class ReadBeforeUpdate(UpdateBeforeRead):
    """The same done right."""

    def weight(self, draw, cost):
        before = 0.0 if self.mean is None else self.mean
        super().weight(draw, cost)
        return cost - before


class LeaveOneOutWithItself(ScoreFunction):
    """The mean of all particles, the own one included: the gradient shrinks by (K - 1) / K."""

    min_particles = 2

    def weight(self, draw, cost):
        return cost - cost.mean(0)


class OwnDrawBaseline(ScoreFunction):
    """A baseline that looks at the value drawn."""

    families = frozenset({Family.BERNOULLI})

    def weight(self, draw, cost):
        value = draw.value[0]
        return cost - 0.3 * value.reshape(value.shape[: cost.dim()] + (-1,)).sum(-1)


class WrongSign(ScoreFunction):
    def weight(self, draw, cost):
        return -cost


class ScoreTimesScale(ScoreFunction):
    """The score multiplied by the subsampling scale that the cost carries already."""

    def weight(self, draw, cost):
        return cost * draw.scale


class DisARMWithoutFactor(DisARM):
    """The right one without sigmoid(abs(phi))."""

    def factor(self, phi):
        return torch.ones_like(phi)

    def surrogate(self, draw, cost):
        phi = draw.logits.detach()
        return Surrogate(super().surrogate(draw, cost).loss * self.factor(phi) / phi.abs().sigmoid())


class DisARMWithWrongFactor(DisARMWithoutFactor):
    def factor(self, phi):
        return phi.sigmoid()


class DisARMWithWrongSign(DisARMWithoutFactor):
    def factor(self, phi):
        return -phi.abs().sigmoid()


class UnstableScore(ScoreFunction):
    """log q through 1 - (1 - q), which float32 cannot hold for improbable values."""

    def surrogate(self, draw, cost):
        q = 1 - (1 - draw.score.exp())
        return Surrogate(q.log() * cost[0].detach())


class LeakyBaseline(ScoreFunction):
    """An auxiliary loss that trains the program's parameters too."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def surrogate(self, draw, cost):
        return Surrogate(draw.score * cost[0].detach(), (draw.score.exp() - self.level).square().sum())


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (UpdateBeforeRead, ["fair_bernoulli"]),
        (LeaveOneOutWithItself, ["fair_bernoulli"]),
        (OwnDrawBaseline, ["fair_bernoulli"]),
        (WrongSign, ["one_bernoulli"]),
        (ScoreTimesScale, ["subsampled", "ragged_subsample"]),
        (DisARMWithoutFactor, ["bernoulli_event"]),
        (DisARMWithWrongFactor, ["bernoulli_event"]),
        (DisARMWithWrongSign, ["bernoulli_event"]),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_a_planted_error_is_seen(estimator, names):
    # a bias of one part in twenty takes more draws than the others
    draws = 3_200 if estimator is UpdateBeforeRead else 800
    chosen = [PROGRAMS[n] for n in names]
    report = check_estimator(estimator, programs=chosen, dtypes=(torch.float64,), draws=draws, false_alarm=5e-7)
    print(report)
    assert not report.violations
    assert any(not c.is_loss and c.alarm for c in report.comparisons)
    assert not any(c.is_loss and c.alarm for c in report.comparisons)
    with pytest.raises(AssertionError, match="FAILS"):
        assert_contract(report)


class SaysItIsBiased(ScoreFunction):
    """Right, but declared biased: the claim has to be seen to be true."""

    unbiased = False


@pytest.mark.statistical
def test_a_bias_that_is_declared_but_not_there_is_seen():
    names = ["fair_bernoulli", "one_bernoulli"]
    chosen = [PROGRAMS[n] for n in names]
    report = check_estimator(SaysItIsBiased, programs=chosen, dtypes=(torch.float64,), false_alarm=5e-7)
    with pytest.raises(AssertionError, match="no bias was seen"):
        assert_contract(report)


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [ScoreFunction, ReadBeforeUpdate, DisARM])
def test_the_right_ones_pass(estimator):
    """So that it is the planted error that fails, not the scaffold (error probability 3e-6 each)."""
    names = ["fair_bernoulli", "one_bernoulli", "bernoulli_event", "subsampled"]
    chosen = [PROGRAMS[n] for n in names]
    report = check_estimator(estimator, programs=chosen, dtypes=(torch.float64,), false_alarm=3e-6)
    print(report)
    assert_contract(report)


def test_an_unstable_score_is_seen_at_extreme_logits():
    def make(estimator):
        return lambda: TraceELBO(estimator())

    found = compare_precisions(make(UnstableScore), bernoulli_extremes, unlikely=True)
    assert not found.finite or found.error > 1e3
    with pytest.raises(NonFiniteError):
        forced_expectation(make(UnstableScore), 1, torch.float32)
    found = compare_precisions(make(ScoreFunction), bernoulli_extremes, unlikely=True)
    assert found.finite
    assert found.error < 4


def test_a_leaking_auxiliary_loss_is_seen():
    report = check_estimator(LeakyBaseline, programs=[PROGRAMS["fair_bernoulli"]], dtypes=(torch.float64,), draws=64)
    assert any("auxiliary loss has a gradient" in failure for failure in report.failures)


def test_an_auxiliary_loss_of_its_own_parameters_is_no_leak():
    leaks: list[str] = []
    estimator, log_q = LeakyBaseline(), torch.zeros(3, requires_grad=True)

    class Sound(LeakyBaseline):
        def surrogate(self, draw, cost):
            return Surrogate(draw.score * cost[0], (cost[0].detach() - self.level).square().sum())

    with auxiliary_leaks(Sound, leaks):
        Sound().surrogate(Draw(torch.zeros(1, 3), log_q=log_q), torch.ones(1, 3))
    assert not leaks
    with auxiliary_leaks(LeakyBaseline, leaks):
        estimator.surrogate(Draw(torch.zeros(1, 3), log_q=log_q), torch.ones(1, 3))
    assert leaks


class WithParamSite:
    """One of Pyro's ELBOs, which back-propagate only where there is a param site."""

    def __init__(self, elbo):
        self.elbo = elbo

    def loss(self, model, guide, *args):
        return self.elbo.loss(model, guide, *args)

    def loss_and_grads(self, model, guide, *args):
        def with_param(*args):
            pyro.param("unused", torch.zeros(()))
            return guide(*args)

        return self.elbo.loss_and_grads(model, with_param, *args)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("elbo", "name"),
    [
        (Trace_ELBO, "local_feeds_global"),
        (Trace_ELBO, "auxiliary_site"),
        (Trace_ELBO, "masked_distributions"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_the_errors_of_pyro_are_seen(elbo, name):
    """A cost that keeps plate elements apart where they meet; an auxiliary -log q dropped; a score masked."""

    def make(particles, vectorize):
        wrong = elbo(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=2)
        return WithParamSite(wrong)

    report = check_elbo(make, name=elbo.__name__, programs=[PROGRAMS[name]], dtypes=(torch.float64,), false_alarm=5e-7)
    print(report)
    assert any(not c.is_loss and c.alarm for c in report.comparisons)
    assert not any(c.is_loss and c.alarm for c in report.comparisons)


@pytest.mark.statistical
def test_pyro_passes_where_it_is_right():
    names = ["fair_bernoulli", "one_categorical", "nested_plates", "subsampled", "continuous_upstream", "scaled"]

    def make(particles, vectorize):
        return WithParamSite(Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=2))

    assert_contract(check_elbo(make, name="Trace_ELBO", programs=[PROGRAMS[n] for n in names], false_alarm=3e-6))

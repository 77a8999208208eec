"""Bias falls to zero and variance rises as the temperature falls, against the exact gradient.

What is asserted is apart by five standard errors or more (6e-7 each), under a fixed seed.
"""

from __future__ import annotations

from functools import partial

import pytest

from pyro_discrete import (
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    SparseGumbelSoftmax,
    StraightThroughGumbelSoftmax,
    TraceELBO,
)
from pyro_discrete.testing import bias_and_variance, programs

PROGRAMS = {p.name: p for p in programs()}


def measured(make, program, temperatures, particles=2_000):
    def at(temperature):
        return lambda k: TraceELBO(make(temperature=temperature), num_particles=k)

    return [bias_and_variance(at(t), PROGRAMS[program], particles=particles) for t in temperatures]


@pytest.mark.statistical
@pytest.mark.parametrize("program", ["bernoulli_event", "one_hot_event"])
@pytest.mark.parametrize(
    "make", [partial(GumbelSoftmax, kl="linear"), SparseGumbelSoftmax], ids=["gumbel_softmax", "sparse_gumbel_softmax"]
)
def test_soft_relaxations_lose_their_bias_and_gain_variance_as_the_temperature_falls(make, program):
    high, middle, low, lowest = measured(make, program, (3.0, 0.7, 0.1, 0.02), particles=10_000)
    assert high.bias > middle.bias + 5 * middle.bias_error
    assert middle.bias > low.bias + 5 * low.bias_error
    assert lowest.bias < 0.02 + 5 * lowest.bias_error
    assert lowest.variance > 2 * low.variance > 2 * 2 * middle.variance > 2 * 2 * 2 * high.variance


@pytest.mark.statistical
@pytest.mark.parametrize("program", ["bernoulli_event", "one_hot_event"])
def test_an_analytic_divergence_has_less_variance_at_the_default_temperature(program):
    linear, analytic = (measured(partial(GumbelSoftmax, kl=kl), program, (0.35,))[0] for kl in ("linear", "analytic"))
    assert analytic.variance < (0.5 if program == "bernoulli_event" else 0.95) * linear.variance


@pytest.mark.statistical
@pytest.mark.parametrize("make", [StraightThroughGumbelSoftmax, GumbelRao], ids=lambda cls: cls.name)
def test_straight_through_relaxations_gain_variance_but_keep_some_bias(make):
    """The slope of a hard value is no difference of two: exact in the limit for quadratic costs alone."""
    high, middle, low = measured(make, "one_hot_event", (3.0, 0.7, 0.1))
    assert low.variance > middle.variance > high.variance
    assert high.bias > 5 * high.bias_error
    assert low.bias > 5 * low.bias_error
    warm, cold = measured(make, "bernoulli_event", (1.0, 0.02))  # quadratic
    assert warm.bias > 0.5 + 5 * warm.bias_error
    assert cold.bias < 0.02 + 5 * cold.bias_error


@pytest.mark.statistical
def test_what_costs_less_variance_at_equal_temperature():
    """Averaging the noise out, or leaving it out, beats straight-through Gumbel-Softmax."""
    noisy, averaged, gapped = (
        measured(make, "one_hot_event", (0.3,))[0]
        for make in (StraightThroughGumbelSoftmax, GumbelRao, GappedStraightThrough)
    )
    assert averaged.variance < 0.9 * noisy.variance
    assert gapped.variance < 0.9 * noisy.variance


@pytest.mark.statistical
def test_an_unbiased_estimator_has_none():
    found = bias_and_variance(lambda k: TraceELBO("rloo", num_particles=k), PROGRAMS["one_hot_event"])
    assert found.bias < 5 * found.bias_error

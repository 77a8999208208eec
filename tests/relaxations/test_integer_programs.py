"""Integer latents, program unchanged: a mixture, latent classes and a Markov chain equal their one-hot twins."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO

from pyro_discrete import (
    REBAR,
    DoubleCV,
    GumbelSoftmax,
    MuProp,
    ReinMax,
    StraightThroughGumbelSoftmax,
    TraceELBO,
    relax,
)
from pyro_discrete.diagnostics.exact import Oracle
from pyro_discrete.errors import RelaxationError
from pyro_discrete.estimators.registry import available_estimators
from pyro_discrete.relaxations import soft_lookup
from tests.support.integer_programs import PROGRAMS
from tests.support.pairs import gradients

RELAXED = sorted(n for n, e in available_estimators().items() if e.cls().relaxed or (e.cls().sloped and n != "rodeo"))


def estimate(elbo, model, guide, seed=0):
    pyro.clear_param_store()
    torch.manual_seed(seed)
    loss = elbo.loss_and_grads(model, guide)
    return loss, gradients()


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", RELAXED)
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_integer_program_equals_its_one_hot_twin(program, name, particles, monkeypatch):
    """Value and gradients, under one seed, for every estimator that draws or differentiates soft values.

    All draws are the distributions' own: which rows are drawn at once may differ.
    """
    monkeypatch.setattr("pyro_discrete.programs.sites.drawn", lambda fn: fn())
    cls = available_estimators()[name].cls
    particles = max(particles, cls.min_particles)
    model, guide, by_hand, guide_by_hand = PROGRAMS[program]
    for settings in [{"kl": "linear"}, {"kl": "analytic"}] if cls is GumbelSoftmax else [{}]:
        pair = [TraceELBO(cls(**settings), num_particles=particles) for _ in range(2)]
        found = estimate(pair[0], model, guide)
        assert all(g.abs().sum() > 0 for g in found[1].values())
        assert_same(found, estimate(pair[1], by_hand, guide_by_hand))


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_integer_program_is_enumerated_and_sampled_as_it_stands(program):
    model, guide, *_ = PROGRAMS[program]
    loss, found = estimate(TraceELBO("enumerate"), model, guide)
    pyro.clear_param_store()
    exact = Oracle()(model, guide)
    assert loss == pytest.approx(exact.loss, rel=1e-9)
    sampled, more = estimate(TraceELBO("rloo", num_particles=400), model, guide)
    assert sampled == pytest.approx(exact.loss, abs=0.5)  # five standard errors and more
    assert found.keys() == more.keys()
    for name in found:
        assert (found[name] - more[name]).abs().max() < 0.5 + 0.2 * found[name].abs().max()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_pyros_own_elbo_through_relax_gives_the_estimators_answer(program, hard):
    model, guide, *_ = PROGRAMS[program]
    make = StraightThroughGumbelSoftmax if hard else GumbelSoftmax
    ours = estimate(TraceELBO(make(temperature=0.5)), model, guide)
    wrapped = [relax(f, temperature=0.5, hard=hard) for f in (model, guide)]
    pyro.enable_validation(True)
    assert_same(estimate(Trace_ELBO(), *wrapped), ours)

    class Around(Trace_ELBO):
        def loss_and_grads(self, *args):
            with relax(temperature=0.5, hard=hard):
                return super().loss_and_grads(*args)

    assert_same(estimate(Around(), model, guide), ours)


def test_hard_forward_values_are_those_of_the_discrete_program():
    """The loss of a straight-through estimator is the discrete one of the same draws."""
    model, guide, *_ = PROGRAMS["chain"]
    for estimator in (StraightThroughGumbelSoftmax(), ReinMax()):
        pyro.clear_param_store()
        elbo = TraceELBO(estimator)
        torch.manual_seed(4)
        hard = elbo.loss(model, guide)
        torch.manual_seed(4)
        assert elbo.loss_and_grads(model, guide) == pytest.approx(hard, rel=1e-12)


def test_predictions_stay_integers():
    model, guide, *_ = PROGRAMS["mixture"]
    pyro.clear_param_store()
    TraceELBO("gumbel_softmax").loss_and_grads(model, guide)
    samples = Predictive(model, guide=guide, num_samples=5)()
    assert samples["z"].dtype == torch.int64
    assert type(samples["z"]) is torch.Tensor


@pytest.mark.parametrize(
    "estimator", [GumbelSoftmax(), REBAR(learn=False), MuProp(), DoubleCV(alpha=-1.0, learn=False)]
)
def test_a_planted_rounding_of_the_table_is_seen(monkeypatch, estimator):
    """Looking up the likeliest row instead of mixing: the twin differs."""

    def rounded(weights, table):
        return table[weights.argmax(-1)] + 0 * weights.sum()

    model, guide, by_hand, guide_by_hand = PROGRAMS["chain"]
    expected = estimate(TraceELBO(estimator, num_particles=2), by_hand, guide_by_hand)
    monkeypatch.setattr(soft_lookup, "_weighted", rounded)
    with pytest.raises(AssertionError):
        assert_same(estimate(TraceELBO(estimator, num_particles=2), model, guide), expected)


def branching():
    z = pyro.sample("cluster", dist.Categorical(torch.ones(2) / 2))
    pyro.sample("x", dist.Normal(1.0 if z == 1 else -1.0, 1.0), obs=torch.tensor(0.3))


def branching_guide():
    pyro.sample("cluster", dist.Categorical(logits=pyro.param("logits", torch.zeros(2))))


@pytest.mark.parametrize("name", ["gumbel_softmax", "reinmax", "rebar"])
def test_control_flow_on_a_relaxed_integer_is_refused_by_name(name):
    pyro.clear_param_store()
    elbo = TraceELBO(name)
    with (
        warnings.catch_warnings(),
        pytest.raises(RelaxationError, match=r"'cluster'.*__bool__.*torch\.where") as caught,
    ):
        warnings.simplefilter("ignore")  # that rows are run one by one
        elbo.loss_and_grads(branching, branching_guide)
    assert "Trace Shapes" not in str(caught.value)
    assert elbo.loss(branching, branching_guide) > 0  # the discrete objective asks nothing of the program


@pytest.mark.parametrize("name", ["gumbel_softmax", "reinmax"])
def test_a_step_with_soft_indices_is_captured(name):
    model, guide, *_ = PROGRAMS["chain"]
    found = []
    for compile in (False, "graph"):
        pyro.clear_param_store()
        elbo = TraceELBO(name, compile=compile)
        for seed in range(3):
            torch.manual_seed(seed)
            loss = elbo.loss_and_grads(model, guide)
            last = (loss, gradients())
        found.append(last)
    assert elbo.captures.made == 1
    assert_same(found[1], found[0])

"""Every estimator is held to its declarations on structures: ours, and one of a user's own.

Right estimators all together alarm falsely with a probability below 1e-4, under fixed seeds.
"""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    KSubset,
    PlackettLuce,
    TraceELBO,
    TraceExpectation,
    TraceIWELBO,
    available_estimators,
)
from pyro_discrete.diagnostics.exact import BoundOracle
from pyro_discrete.estimators import REBAR, RELAX, Family, GumbelSoftmax, Need
from pyro_discrete.programs.laws import needs_met
from pyro_discrete.testing import (
    assert_contract,
    bound_programs,
    check_estimator,
    discover_structures,
    exact_gradient,
    structure_programs,
)
from pyro_discrete.testing.small_programs.program import Pair, leaf, program
from pyro_discrete.testing.small_programs.structures import by_place, in_a_plate, logits
from tests.support.structures import ChoiceUnderBudget, NoiseOfTheTakenAlone

PROGRAMS = {p.name: p for p in structure_programs()}
SERVING = {n: e for n, e in available_estimators().items() if Family.STRUCTURE in e.families}
CASES = [(n, at) for n, e in SERVING.items() if not e.cls.importance_weighted for at in range(len(e.cls.variants()))]
CASES = [(n, at) for n, at in CASES if Family.STRUCTURE in SERVING[n].cls.variants()[at].families]
LARGE = {"rebar", "relax"}
"""Their second derivatives take most of the time."""
SHARE = 1e-4 / (len(CASES) + 12)


def test_every_structure_has_a_program():
    used = set()
    for each in PROGRAMS.values():
        with each.running() as pair:
            trace = pyro.poutine.trace(pyro.poutine.block(pair.model, hide_types=["param"])).get_trace(*pair.args)
        used |= {type(msg["fn"]) for msg in trace.nodes.values() if msg["type"] == "sample"}
    assert set(discover_structures()) - used == set()


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), CASES)
def test_structures_keep_the_contract(name, number):
    estimator = SERVING[name].cls.variants()[number]
    chosen = [p for p in PROGRAMS.values() if Family.STRUCTURE in p.families]
    dtypes = (torch.float64, torch.float32) if number == 0 else (torch.float64,)
    draws = 3_200 if estimator.unbiased and name not in LARGE else 1_280
    report = check_estimator(estimator, programs=chosen, dtypes=dtypes, draws=draws, false_alarm=SHARE)
    print(report)
    assert_contract(report)
    assert not report.refused
    assert set(report.by_program()) == {p.name for p in chosen if estimator.needs <= p.meets}


QUICK = {"rebar": ["chains", "rankings"], "muprop": ["subsets", "spanning_trees"], "enumerate": [*PROGRAMS]}
QUICK |= {
    "double_cv": ["gibbs_matchings"],
    "unordered_set": ["two_structures"],
    "rloo": ["structure_in_the_model_alone"],
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", QUICK)
def test_some_structures_keep_the_contract(name):
    chosen = [PROGRAMS[n] for n in QUICK[name]]
    assert_contract(
        check_estimator(name, programs=chosen, dtypes=(torch.float64,), draws=640, false_alarm=SHARE, seed=1)
    )


@pytest.mark.statistical
def test_marginals_of_perturbed_logits_are_another_law():
    """The stochastic softmax trick runs on all structures with marginals, and its bias is seen."""
    chosen = [p for p in PROGRAMS.values() if Family.STRUCTURE in p.families]
    estimator = GumbelSoftmax(relaxation="marginals")
    report = check_estimator(estimator, programs=chosen, dtypes=(torch.float64,), draws=640, false_alarm=SHARE)
    assert_contract(report)
    assert {"arborescences", "spanning_trees", "subsets"} <= set(report.by_program())


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("name", ["reinforce", "vimco", "rebar", "muprop", "sum_and_sample"])
def test_the_bound_of_structures(name):
    """The importance-weighted bound, by brute force over all pairs of values."""
    chosen = [p for p in (*PROGRAMS.values(), *bound_programs()) if p.name == "two_structures"]
    if name == "muprop":  # of structures with marginals
        chosen = [replace(a_subset_in_a_bound, oracle=BoundOracle(2))]
    report = check_estimator(name, programs=chosen, inner=2, dtypes=(torch.float64,), draws=1_280, false_alarm=SHARE)
    print(report)
    assert_contract(report)


# Planted, and a user's own


@program(Family.STRUCTURE, Family.BERNOULLI)
def wrong_chains(dtype):
    """Chains whose noise is of the decisions taken alone."""
    return in_a_plate(NoiseOfTheTakenAlone, by_place, dtype, 3, 2, 2)


@pytest.mark.statistical
def test_rebar_sees_noise_of_the_decisions_taken_alone():
    report = check_estimator(
        REBAR(learn=False), programs=[wrong_chains], dtypes=(torch.float64,), draws=640, false_alarm=SHARE
    )
    assert any(not c.is_loss and c.alarm for c in report.comparisons), report
    assert not any(c.is_loss and c.alarm for c in report.comparisons), report


@program(Family.STRUCTURE, Family.BERNOULLI)
def choices_under_a_budget(dtype):
    """What a backpack holds, by a structure of a user's own."""

    def read(z, weights):
        return (z * weights).sum(-1).square() - z[..., 0] * z[..., 2]

    return in_a_plate(lambda values: ChoiceUnderBudget(values, (2, 1, 3, 2), 5), read, dtype, 4)


@program(Family.STRUCTURE)
def a_subset_in_a_bound(dtype):
    """A subset whose bound is known by all pairs of values."""
    phi, weights = logits(dtype, 4), leaf([0.6, -1.0, 0.4, 0.2], dtype)

    def model():
        z = pyro.sample("z", KSubset(torch.zeros(4, dtype=dtype), 2))
        pyro.sample("x", dist.Normal((z * weights).sum(-1) + z[..., 0] * z[..., 1], 0.7), obs=phi.new_tensor(0.9))

    def guide():
        pyro.sample("z", KSubset(phi, 2))

    return Pair(model, guide, (), {"phi": phi, "weights": weights})


BUDGETED = ["muprop", "unordered_set", "optimal_control_variate", "straight_through", "gumbel_softmax", "gumbel_rao"]


@pytest.mark.statistical
@pytest.mark.parametrize(
    "name", [*BUDGETED, *(pytest.param(n, marks=pytest.mark.slow) for n in SERVING if n not in BUDGETED)]
)
def test_a_structure_of_ones_own_is_served_by_all_that_it_can(name):
    assert needs_met(ChoiceUnderBudget.small()[0], 9.0) == frozenset(Need)
    if SERVING[name].cls.importance_weighted:
        pytest.skip("of the importance-weighted bound alone")
    report = check_estimator(
        name, programs=[choices_under_a_budget], dtypes=(torch.float64,), draws=1_280, false_alarm=SHARE
    )
    print(report)
    assert_contract(report)


@pytest.mark.parametrize("objective", [TraceELBO, TraceIWELBO, TraceExpectation])
@pytest.mark.parametrize("name", ["straight_through", "gumbel_rao", "straight_through_gumbel_softmax"])
def test_hard_forward_estimators_report_the_loss_that_they_train(objective, name):
    with PROGRAMS["subsets"].running() as pair:
        elbo = objective(name, num_particles=3)
        elbo.loss(pair.model, pair.guide, *pair.args)  # plans
        losses = []
        for each in (elbo.loss, elbo.loss_and_grads):
            torch.manual_seed(4)
            losses.append(each(pair.model, pair.guide, *pair.args))
        assert losses[0] == pytest.approx(losses[1], abs=1e-12)


@pytest.mark.parametrize("name", ["rebar", "muprop", "gumbel_softmax", "straight_through", "double_cv"])
@pytest.mark.parametrize("where", ["subsets", "chains"])
def test_a_captured_step_is_the_eager_one(where, name):
    found = []
    for settings in ({}, {"compile": "graph"}):
        with PROGRAMS[where].running() as pair:
            torch.manual_seed(2)
            elbo = TraceELBO(name, num_particles=2, **settings)
            for _ in range(3):
                loss = elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
                found.append([torch.tensor(loss), *(p.grad.clone() for p in pair.parameters.values())])
                for parameter in pair.parameters.values():
                    parameter.grad = None
    for eager, captured in zip(found[:3], found[3:], strict=True):
        for one, other in zip(eager, captured, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-9, atol=1e-9)


def test_the_network_of_a_black_box_is_trained_from_zero():
    """Its slopes start at zero, where the second derivatives of a race's noise have to be numbers all the same."""
    phi = logits(torch.float64, 5)

    def model():
        order = pyro.sample("order", PlackettLuce(torch.zeros(5, dtype=torch.float64), 3))
        pyro.factor("reward", -1.0 * (order[..., 0] == 2))

    def guide():
        pyro.sample("order", PlackettLuce(phi, 3))

    elbo = TraceELBO(RELAX(black_box=True), num_particles=4)
    elbo.loss_and_grads(model, guide)
    trained = [p.grad for p in elbo.parameters() if p.grad is not None]
    assert trained
    assert all(bool(g.isfinite().all()) for g in trained)
    assert any(bool(g.any()) for g in trained)


def test_a_subset_of_linear_cost_is_exact_under_muprop():
    """Draw by draw: the gradient of `sum(w * marginals)` and of the divergence's linear part."""
    phi, weight = logits(torch.float64, 6), torch.tensor([0.3, -1.0, 0.8, 0.1, -0.4, 0.6], dtype=torch.float64)

    def model():
        z = pyro.sample("z", KSubset(torch.zeros(6, dtype=torch.float64), 3))
        pyro.factor("reward", (z * weight).sum(-1))

    def guide():
        pyro.sample("z", KSubset(phi, 3))

    TraceELBO("muprop", num_particles=2).loss_and_grads(model, guide)
    right = exact_gradient(model, guide)
    torch.testing.assert_close(phi.grad, next(iter(right.values())), rtol=1e-9, atol=1e-10)


def test_structures_of_many_copies_in_an_event():
    phi = leaf([[0.3, -0.2, 0.9], [1.1, 0.4, -0.6]], torch.float64)

    def model():
        z = pyro.sample("z", PlackettLuce(torch.zeros(2, 3, dtype=torch.float64)).to_event(1))
        pyro.sample(
            "x", dist.Normal(phi.new_tensor([0.3, -1.0, 0.5])[z].prod(-1).sum(-1), 1.0), obs=phi.new_tensor(0.7)
        )

    def guide():
        pyro.sample("z", PlackettLuce(phi).to_event(1))

    right = next(iter(exact_gradient(model, guide).values()))
    for name in ("enumerate", "rebar", "straight_through_gumbel_softmax"):
        phi.grad = None
        torch.manual_seed(0)
        elbo = TraceELBO(name, num_particles=1 if name == "enumerate" else 4_000)
        elbo.loss_and_grads(model, guide)
        if name == "enumerate":
            torch.testing.assert_close(phi.grad, right)
        elif name == "rebar":
            assert (phi.grad - right).norm() < 0.2 * right.norm()
        assert bool(phi.grad.isfinite().all())

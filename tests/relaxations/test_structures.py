"""Structures in programs that see soft values: scored at their vertices, refused by what they lack, jumps watched."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_discrete import (
    REBAR,
    Arborescence,
    GibbsMatching,
    GumbelSoftmax,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    SpanningTree,
    TraceELBO,
    relax,
)
from pyro_discrete.errors import EnumerationError, RelaxationError, UnsupportedSiteError
from pyro_discrete.relaxations.relaxed_distribution import Relaxed, program_value
from pyro_discrete.relaxations.soft_index import SoftIndex

DOUBLE = torch.float64
STRUCTURES = [
    PlackettLuce(torch.tensor([0.3, -0.4, 1.1, 0.2], dtype=DOUBLE), 2),
    KSubset(torch.tensor([0.3, -0.4, 1.1, 0.2], dtype=DOUBLE), 2),
    *(cls(torch.tensor([[0.3, -0.4, 1.1], [0.2, 0.8, -0.5], [0.0, 0.4, 0.6]], dtype=DOUBLE))
      for cls in (SequentialMatching, GibbsMatching, Arborescence)),
    LinearChain(torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 2, 2)),
    SpanningTree(torch.zeros(3, 3, dtype=DOUBLE)),
]  # fmt: skip
NAMES = [type(s).__name__ for s in STRUCTURES]


@pytest.mark.parametrize("structure", STRUCTURES, ids=NAMES)
def test_a_soft_value_at_a_vertex_is_the_hard_one(structure):
    """What it is scored at, and what a program looks up by it."""
    values = structure.enumerate_support()
    seen = program_value(structure, structure.vertex(values), "z")
    torch.testing.assert_close(Relaxed(structure, site="z").log_prob(seen), structure.log_prob(values))
    if isinstance(seen, SoftIndex):
        assert torch.equal(seen.hard(), values)
        table = torch.linspace(-1, 2, seen.weights.shape[-1], dtype=DOUBLE)
        torch.testing.assert_close(table[seen], table[values])
    else:
        assert torch.equal(seen, values)


def pair_of(structure, read):
    phi = structure.logits.clone().requires_grad_()

    def model():
        read(pyro.sample("z", structure))

    def guide():
        pyro.sample("z", structure.like(phi))

    return model, guide, phi


def factor(value):
    pyro.factor("reward", torch.linspace(-1, 1, 4, dtype=DOUBLE)[value].square().sum(-1))


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s.defines("perturb")], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("hard", [False, True])
def test_the_handler_relaxes_structures_under_pyros_own_elbo(structure, hard):
    def read(value):
        factor(value) if structure.soft_value == "index" else pyro.factor("reward", value[..., 0] * value[..., 1])

    model, guide, phi = pair_of(structure, read)
    with relax(temperature=0.5, hard=hard):
        loss = Trace_ELBO(num_particles=2).differentiable_loss(model, guide)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(phi.grad.isfinite().all())
    assert bool(phi.grad.any())


def test_the_handler_names_what_a_structure_lacks():
    model, guide, _ = pair_of(STRUCTURES[4], factor)
    with pytest.raises(UnsupportedSiteError, match="Arborescence, which has no noise"), relax(temperature=0.5):
        Trace_ELBO().loss(model, guide)


def raised(estimator, structure, read=factor):
    model, guide, _ = pair_of(structure, read)
    with pytest.raises((UnsupportedSiteError, EnumerationError, RelaxationError)) as caught:
        TraceELBO(estimator, num_particles=2).loss_and_grads(model, guide)
    return str(caught.value)


def test_refusals_name_the_missing_capability():
    tree, ranking = STRUCTURES[4], STRUCTURES[0]
    for name in ("rebar", "relax", "gumbel_rao"):
        text = raised(name, tree)
        assert "Arborescence has no noise given a value" in text
        assert all(other in text for other in ("rloo", "straight_through", "muprop"))
    assert "GumbelSoftmax(relaxation='marginals')" in raised("gumbel_softmax", tree)
    assert "no noise that stands for a value" in raised("straight_through_gumbel_softmax", tree)
    for name in ("muprop", "double_cv", "straight_through", "optimal_control_variate"):
        assert "PlackettLuce has no marginals" in raised(name, ranking)
    for name in ("arm", "disarm", "carms", "coupled", "indecater", "rodeo", "reinmax", "sparse_gumbel_softmax"):
        assert "PlackettLuce (structure)" in raised(name, ranking)
    assert "no density in closed form" in raised(GumbelSoftmax(kl="relaxed"), STRUCTURES[1], lambda z: None)


@pytest.mark.parametrize("name", ["enumerate", "unordered_set", "sum_and_sample"])
def test_supports_too_large_are_refused_by_their_size(name):
    assert "2.433e+18" in raised(name, PlackettLuce(torch.zeros(20)), lambda z: None)


@pytest.mark.parametrize("name", ["rloo", "rebar", "gumbel_softmax", "auto"])
def test_supports_too_large_are_never_listed(name, monkeypatch):
    def listed(self):
        raise AssertionError("listed")

    monkeypatch.setattr(PlackettLuce, "_support_list", listed)
    table = torch.linspace(-1, 1, 30)
    phi = torch.zeros(30, requires_grad=True)

    def model():
        order = pyro.sample("order", PlackettLuce(torch.zeros(30)))
        pyro.sample("x", dist.Normal((table[order] * table).sum(-1), 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("order", PlackettLuce(phi))

    elbo = TraceELBO(name, num_particles=2)
    elbo.loss_and_grads(model, guide)
    elbo.loss(model, guide)
    assert bool(phi.grad.isfinite().all())
    assert "structure" in str(elbo.plan)


def test_jumps_of_a_ranking_are_refused_and_warned_of():
    structure = STRUCTURES[0]

    def jumps(value):
        pyro.factor("reward", 1.0 * (torch.linspace(-1, 1, 4, dtype=DOUBLE)[value].sum(-1) > 0.1))

    assert "'z'" in raised(REBAR(), structure, jumps)
    model, guide, _ = pair_of(structure, jumps)
    with pytest.warns(UserWarning, match="site 'z'"):
        TraceELBO("gumbel_softmax").loss_and_grads(model, guide)
    smooth, same, _ = pair_of(structure, lambda z: pyro.factor("r", 1.0 * (z == 1).float().sum(-1)))
    TraceELBO(REBAR(), num_particles=2).loss_and_grads(smooth, same)


def test_a_soft_value_where_one_number_is_needed_is_refused():
    model, guide, _ = pair_of(STRUCTURES[0], lambda z: pyro.factor("r", torch.tensor(float(int(z[0])))))
    with pytest.raises(RelaxationError, match="'z'"):
        TraceELBO("gumbel_softmax").loss_and_grads(model, guide)


def test_a_soft_chain_is_scored_at_its_pairs():
    """Its soft states alone would not do: those of two pairs with the same states are told apart."""
    chain = STRUCTURES[5]
    values = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])
    vertices = chain.vertex(values)
    same, other = 0.5 * vertices[:2].sum(0), 0.5 * vertices[2:].sum(0)
    seen = [program_value(chain, vertex, "z") for vertex in (same, other)]
    torch.testing.assert_close(seen[0].weights, seen[1].weights)
    found = [Relaxed(chain, site="z").log_prob(each) for each in seen]
    log_p = chain.log_prob(values)
    torch.testing.assert_close(torch.stack(found), torch.stack([log_p[:2].mean(), log_p[2:].mean()]))
    with pytest.raises(RelaxationError, match="LinearChain does not follow"):
        Relaxed(chain, site="z").log_prob(seen[0].flip(-1))


def test_structures_of_another_kind_in_the_model():
    """A guide of rankings for a model of matchings, whose vertices are alike; trees for them are refused."""
    ranking = PlackettLuce(torch.tensor([0.3, -0.4, 1.1], dtype=DOUBLE))
    phi = ranking.logits.clone().requires_grad_()

    def run(prior):
        def model():
            factor(pyro.sample("z", prior))

        def guide():
            pyro.sample("z", PlackettLuce(phi))

        elbo = TraceELBO("gumbel_softmax")
        elbo.loss_and_grads(model, guide)
        return elbo

    assert "linear" in str(run(STRUCTURES[3]).plan)
    chain = LinearChain(torch.zeros(3, 3, 3, dtype=DOUBLE))
    with pytest.raises(RelaxationError, match="another kind of structure than the LinearChain"):
        run(chain)
    assert math.isfinite(TraceELBO("rloo", num_particles=2).loss(*pair_of(ranking, factor)[:2]))


def test_the_divergence_of_soft_subsets_is_analytic_and_exact():
    """At no likelihood the loss is the divergence itself, whatever is drawn."""
    prior, phi = KSubset(torch.zeros(5, dtype=DOUBLE), 2), torch.linspace(-1, 1, 5, dtype=DOUBLE).requires_grad_()

    def model():
        pyro.sample("z", prior)

    def guide():
        pyro.sample("z", KSubset(phi, 2))

    elbo = TraceELBO("gumbel_softmax", num_particles=3)
    right = KSubset(phi, 2).kl(prior)
    assert elbo.loss_and_grads(model, guide) == pytest.approx(right.item())
    (slope,) = torch.autograd.grad(right, phi)
    torch.testing.assert_close(phi.grad, slope)
    assert "analytic" in str(elbo.plan)
    assert "linear" in str(_plan_of(GumbelSoftmax(kl="linear"), model, guide))


def _plan_of(estimator, model, guide):
    elbo = TraceELBO(estimator)
    elbo.loss(model, guide)
    return str(elbo.plan) + " linear" * (not str(elbo.plan).count("analytic"))


def test_pyros_own_matching_is_discrete_and_ours_is_named():
    from pyro.distributions import OneOneMatching

    def model():
        pyro.sample("z", OneOneMatching(torch.zeros(3, 3)))

    elbo = TraceELBO("rloo", num_particles=2, vectorize_particles=False)
    elbo.loss(model, model)
    assert "GibbsMatching(logits) has the same law" in str(elbo.plan)

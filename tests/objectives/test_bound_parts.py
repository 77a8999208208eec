"""What an importance-weighted bound's gradient is made of: leave-one-out sums, costs of rows, and other objectives.

The statistical test alarms falsely with a probability below 2e-6, under fixed seeds.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import NVIL, VIMCO, TraceELBO, TraceIWELBO
from pyro_discrete.control_variates.leave_one_out import leave_one_out_logsumexp, leave_one_out_mean
from pyro_discrete.errors import ParticleError, SettingError, UnsupportedObjectiveError
from pyro_discrete.estimators.base import Weights
from pyro_discrete.objectives.costs import Costs, Order
from pyro_discrete.objectives.log_weights import BoundCosts
from tests.support.bounds import PROGRAMS
from tests.support.pairs import DATA, mixture, mixture_guide


def test_leave_one_out_sums_are_those_of_the_matrix():
    """The K x K matrix whose diagonal is left out, or holds the mean of the others; weights a thousand orders apart."""
    for w in (torch.randn(2, 6, 3), torch.tensor([[0.0, 700.0, -500.0, 1.0]]), torch.tensor([[3.0, -math.inf, 2.0]])):
        w = w.double()
        count = w.shape[1]
        others = w.unsqueeze(1).expand(-1, count, *w.shape[1:]).clone()
        total, mean = leave_one_out_logsumexp(w, 1), leave_one_out_mean(w, 1)
        for k in range(count):
            rest = torch.cat([w[:, :k], w[:, k + 1 :]], 1)
            torch.testing.assert_close(total[:, k], rest.logsumexp(1))
            torch.testing.assert_close(mean[:, k], rest.mean(1))
            others[:, k, k] = rest.mean(1)
        without = VIMCO().bound_without(Weights(w, total, mean, 1.0, count))
        torch.testing.assert_close(without, others.logsumexp(2) - math.log(count))
        arithmetic = VIMCO("arithmetic").bound_without(Weights(w, total, mean, 1.0, count))
        torch.testing.assert_close(arithmetic, total - math.log(count - 1))


def test_a_row_replaces_one_particles_weight():
    """Each cost is minus the bound of the K weights, with the particle's own replaced by its row's."""
    torch.manual_seed(0)
    w = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    nowhere: frozenset[tuple[str, int]] = frozenset()
    costs = BoundCosts(
        {nowhere: w},
        BoundCosts.others_of({nowhere: w}),
        {"z": nowhere},
        Costs([], Order({"z": frozenset()}, {})),
        2.0,
        4,
        {"z": frozenset()},
        (True, False, False),
    )
    found = costs.of("z").reshape(3, 2, 4, 5)
    for row in range(3):
        for k in range(4):
            changed = w[0].clone()
            changed[:, k] = w[row, :, k]
            torch.testing.assert_close(found[row, :, k], -2.0 * (changed.logsumexp(1) - math.log(4)))


@pytest.mark.parametrize("apart", [0.0, 3.0, 200.0, math.inf])
def test_slopes_of_slopes_are_finite_however_far_weights_are_apart(apart):
    """Of the cost in the particle's own weight: minus its share, and minus share (1 - share)."""
    own = torch.tensor([0.0, apart, -apart], requires_grad=True)
    others = torch.tensor([apart if apart < math.inf else 1.0, 0.0, 0.0])
    w = own.reshape(1, 1, 3)
    nowhere: frozenset[tuple[str, int]] = frozenset()
    order = Order({"z": frozenset()}, {})
    given = {nowhere: (others.reshape(1, 1, 3), others.reshape(1, 1, 3))}
    costs = BoundCosts({nowhere: w}, given, {"z": nowhere}, Costs([], order), 1.0, 3, {"z": frozenset()}, (False,))
    kept = (own - others).isfinite()
    (slope,) = torch.autograd.grad(costs.of("z")[kept].sum(), own, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), own)
    share = (own - others).sigmoid().detach()
    torch.testing.assert_close(slope[kept], -share[kept])
    torch.testing.assert_close(second[kept], -(share * (1 - share))[kept])


def test_estimators_that_cannot_work_are_refused_with_the_reason():
    with pytest.raises(ParticleError, match=r"the bound that they have in common.*num_outer_samples >= 2"):
        TraceIWELBO("rloo", num_particles=8)
    TraceIWELBO("rloo", num_particles=8, num_outer_samples=2).loss_and_grads(mixture, mixture_guide, DATA)
    with pytest.raises(ParticleError, match="at least 2 particles"):
        TraceIWELBO("vimco")
    for name in ("vimco", "reweighted_wake_sleep"):
        with pytest.raises(UnsupportedObjectiveError, match="Write TraceIWELBO"):
            TraceELBO(name, num_particles=4)
    with pytest.raises(SettingError, match="num_outer_samples=0"):
        TraceIWELBO(num_outer_samples=0)
    with pytest.raises(SettingError, match="'geometric' or 'arithmetic'"):
        VIMCO("harmonic")  # type: ignore[arg-type]


def test_auto_and_what_particles_share():
    with PROGRAMS["subsampled"].running() as pair:
        for spec in ("auto", "vimco"):
            for outer, expected in ((1, "nvil"), (2, "rloo")):
                elbo = TraceIWELBO(spec, num_particles=4, num_outer_samples=outer)
                elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
                assert [e.name for e in elbo.plan.estimators.values()] == [expected, "vimco"]


def continuous(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(pyro.param("slope", torch.tensor(1.3)) * c, 0.5), obs=x)


def continuous_guide(x):
    loc, spread = pyro.param("loc", torch.tensor(0.2)), pyro.param("spread", torch.tensor(-0.8))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(loc + 0.6 * x, spread.exp()))


@pytest.mark.statistical
def test_doubly_reparameterised_gradients_have_the_same_mean_and_less_noise():
    """Guide: equal means at 5 standard errors, less variance; model: the very same gradient under one seed."""
    names, samples = ("loc", "spread", "slope"), {}
    for dreg in (False, True):
        pyro.clear_param_store()
        elbo = TraceIWELBO(num_particles=32, num_outer_samples=64, dreg=dreg)
        draws = []
        for seed in range(40):
            pyro.set_rng_seed(seed)
            elbo.loss_and_grads(continuous, continuous_guide, DATA)
            store = dict(pyro.get_param_store().named_parameters())
            draws.append(torch.stack([store[n].grad.clone() for n in names]))
            for p in store.values():
                p.grad = None
        samples[dreg] = torch.stack(draws)
    plain, doubly = samples[False], samples[True]
    torch.testing.assert_close(plain[:, 2], doubly[:, 2], rtol=1e-4, atol=1e-4)
    error = ((plain.var(0) + doubly.var(0)) / len(plain)).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() < 5 * error + 1e-5).all()
    assert (doubly.var(0)[:2] < 0.5 * plain.var(0)[:2]).all()


def test_doubly_reparameterised_sites_are_those_that_nothing_later_depends_on():
    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(loc, 1.0))
            pyro.sample("b", dist.Normal(a + loc, 1.0))
            pyro.sample("c", dist.Normal(loc * x, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    elbo = TraceIWELBO(num_particles=3, dreg=True)
    elbo.loss_and_grads(model, guide, DATA)
    assert elbo.plan.layout.doubly == {"b", "c"}
    assert [s.name for s in elbo.plan.sites if "doubly reparameterised" in s.notes] == ["b", "c"]


def test_reweighted_wake_sleep_is_the_weighted_log_likelihood_of_the_guide():
    """Its gradient on the guide is that of - sum_k w_k log q(z_k), the particles and weights held."""
    pyro.clear_param_store()
    values = []

    def watched(x):
        trace = poutine.trace(mixture_guide).get_trace(x)
        values.append(trace.nodes["z"]["value"])

    elbo = TraceIWELBO("reweighted_wake_sleep", num_particles=6)
    elbo.loss(mixture, mixture_guide, DATA)
    elbo.loss_and_grads(mixture, watched, DATA)
    logit = pyro.get_param_store()._params["logit"]
    found = logit.grad.clone()
    z = values[-1]
    log_q = dist.Bernoulli(logits=logit + 0.5 * DATA).log_prob(z)
    log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(DATA)
    weights = (log_p - log_q).detach().softmax(0)
    (expected,) = torch.autograd.grad(-(weights * log_q).sum(), logit)
    torch.testing.assert_close(found, expected)


def test_state_and_gradients_as_in_the_other_objectives():
    """differentiable_loss leaves the gradient of loss_and_grads; NVIL's parts are trained on the bound too."""
    grads = []
    for differentiable in (False, True):
        pyro.clear_param_store()
        elbo = TraceIWELBO(NVIL(), num_particles=4, num_outer_samples=2)
        elbo.loss(mixture, mixture_guide, DATA)
        pyro.set_rng_seed(2)
        if differentiable:
            elbo.differentiable_loss(mixture, mixture_guide, DATA).backward()
        else:
            elbo.loss_and_grads(mixture, mixture_guide, DATA)
        grads.append(pyro.get_param_store()._params["logit"].grad.clone())
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in elbo.parameters())
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("apart", [1.0, 60.0, 300.0, math.inf])
def test_the_slopes_slope_is_finite_at_weights_far_apart(apart: float) -> None:
    """Learned control variates differentiate a slope; two particles, the first one's weight e^apart times smaller."""
    leaf = torch.tensor([-min(apart, 1e4), 0.0], requires_grad=True)
    log_weights = {frozenset(): (leaf if apart < math.inf else leaf * torch.tensor([math.inf, 1.0])).reshape(1, 1, 2)}
    others = BoundCosts.others_of(log_weights)
    costs = BoundCosts(log_weights, others, {}, Costs.__new__(Costs), 1.0, 2, {}, (False,))
    (slope,) = torch.autograd.grad(costs.bounds[frozenset()].sum(), log_weights[frozenset()], create_graph=True)
    weight = 1 / (1 + math.exp(min(apart, 700.0)))
    expected = torch.tensor([weight, 1 - weight])
    torch.testing.assert_close(slope.flatten(), expected, rtol=1e-4, atol=1e-30)
    (second,) = torch.autograd.grad(slope.square().sum(), log_weights[frozenset()])
    assert second.isfinite().all()

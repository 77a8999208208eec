"""Sums by a run for each joint value of all elements, against sums written out by hand."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO, TraceIWELBO
from pyro_discrete.errors import EnumerationError, SettingError
from pyro_discrete.sums.joint_values import JointValues
from tests.support.pairs import gradients

X = torch.tensor([0.3, -1.2, 0.8])
PRIOR = torch.tensor([0.6, 0.4])


@pytest.fixture(autouse=True)
def exact_numbers():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def one_bit():
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))


def bits(number):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=number)))


def outside():
    """A site outside of the plate reads all elements of one inside."""
    loc, z = pyro.param("loc", torch.tensor(0.7)), pyro.sample("z", dist.Bernoulli(0.4))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Bernoulli(PRIOR[1]))
    pyro.sample("x", dist.Normal(loc * y.sum(-1) + z, 1.0), obs=X[0])


def within():
    """A term in the plate reads the other elements."""
    loc, z = pyro.param("loc", torch.tensor(0.7)), pyro.sample("z", dist.Bernoulli(0.4))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Bernoulli(PRIOR[1]))
        pyro.sample("x", dist.Normal(loc * (y - 0.5 * y.sum(-1, keepdim=True)) + z, 1.0), obs=X)


def stacked():
    """The program takes no dims on the left, and Python reads a value."""
    loc, z = pyro.param("loc", torch.tensor(0.7)), pyro.sample("z", dist.Bernoulli(0.4))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Bernoulli(PRIOR[1]))
        pyro.sample("x", dist.Normal(loc * torch.tensor([float(v) for v in y]) + z, 1.0), obs=X)


LOCS = {
    outside: (lambda y, loc, z: loc * y.sum(-1, keepdim=True) + z, X[:1]),
    within: (lambda y, loc, z: loc * (y - 0.5 * y.sum(-1, keepdim=True)) + z, X),
    stacked: (lambda y, loc, z: loc * y + z, X),
}


def right(model, z):
    """log p(x, z), its own bits summed out, and its derivative by loc."""
    of, x = LOCS[model]
    loc = torch.tensor(0.7, requires_grad=True)
    y = bits(3)
    log_p = dist.Bernoulli(PRIOR[1]).log_prob(y).sum(-1) + dist.Normal(of(y, loc, z), 1.0).log_prob(x).sum(-1)
    total = log_p.logsumexp(0) + dist.Bernoulli(torch.tensor(0.4)).log_prob(torch.tensor(z))
    return total.item(), torch.autograd.grad(total, loc)[0].item()


@pytest.mark.parametrize("model", LOCS)
@pytest.mark.parametrize("estimator", ["enumerate", "reinforce", "rloo"])
@pytest.mark.filterwarnings("ignore:This program cannot take")
def test_elements_that_hang_together_are_summed_over_jointly(model, estimator):
    """Under a sampled estimator each draw's loss, and the model's gradient there, are those at the draw."""
    q = torch.tensor(0.3).sigmoid().item()
    particles = 2 if estimator == "rloo" else 1
    elbo = TraceELBO(estimator, num_particles=particles)
    loss = elbo.loss_and_grads(model, one_bit)
    value, slope = zip(*(right(model, z) for z in (0.0, 1.0)), strict=True)
    log_q = [math.log(1 - q), math.log(q)]
    if estimator == "enumerate":
        assert elbo.plan.way.one_by_one
        assert loss == pytest.approx((1 - q) * (log_q[0] - value[0]) + q * (log_q[1] - value[1]))
        assert gradients()["loc"].item() == pytest.approx(-(1 - q) * slope[0] - q * slope[1])
        return
    assert elbo.plan.marginals.one_by_one
    assert elbo.plan.path == "sequential"
    possible = {
        sum(log_q[z] - value[z] for z in draws) / particles: -sum(slope[z] for z in draws) / particles
        for draws in itertools.product((0, 1), repeat=particles)
    }
    nearest = min(possible, key=lambda each: abs(each - loss))
    assert loss == pytest.approx(nearest)
    assert gradients()["loc"].item() == pytest.approx(possible[nearest])


@pytest.mark.parametrize("estimator", ["enumerate", "reinforce"])
@pytest.mark.parametrize("joined", [False, True, "by a weight of zero"])
def test_a_term_of_another_scale_stays_outside_if_no_summed_value_reaches_it(estimator, joined):
    def model():
        weight = pyro.param("weight", torch.tensor(0.0 if isinstance(joined, str) else 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        w = pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * float(w) + float(z), 1.0), obs=X[0])
        with pyro.poutine.scale(scale=3.0):
            pyro.sample("y", dist.Normal(weight * float(w if joined else z), 1.0), obs=X[1])

    elbo = TraceELBO(estimator)
    if joined:
        with pytest.raises(EnumerationError, match=r"'y' \(3\).*of the model alone \(1\).*scales of these differ"):
            elbo.loss_and_grads(model, one_bit)
        return
    q = dist.Bernoulli(logits=torch.tensor(0.3))
    values = []
    for z in (torch.tensor(0.0), torch.tensor(1.0)):
        each = [torch.tensor(p).log() + dist.Normal(2.0 * w + z, 1.0).log_prob(X[0]) for w, p in ((0, 0.7), (1, 0.3))]
        log_p = torch.stack(each).logsumexp(0) + 3 * dist.Normal(z, 1.0).log_prob(X[1])
        values.append((q.log_prob(z) - dist.Bernoulli(torch.tensor(0.4)).log_prob(z) - log_p).item())
    loss = elbo.loss(model, one_bit)
    if estimator == "enumerate":
        assert loss == pytest.approx((1 - q.probs.item()) * values[0] + q.probs.item() * values[1])
    else:
        assert min(abs(loss - v) for v in values) < 1e-9


@pytest.mark.parametrize("rows", [True, False])
def test_a_site_without_derivative_beside_joint_values_gets_the_score_function(rows):
    """Over 20,000 particles (or 400), within 5.5 standard errors of about 1.5 / sqrt(particles): fails by chance once
    in 10^7. Planted: the gradient of the mean was near 0 without it."""

    def scope(z):
        return z.sum(-1, keepdim=True) if rows else z.sum()

    def model():
        c = pyro.sample("c", dist.Normal(0.0, 1.0).has_rsample_(False))
        with pyro.plate("p", 2, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        w = pyro.sample("w", dist.Bernoulli(logits=scope(z) - 1))
        pyro.sample("x", dist.Normal(scope(z) + w + c, 1.0), obs=torch.ones_like(c))

    def guide():
        c = pyro.sample("c", dist.Normal(pyro.param("m", torch.tensor(0.2)), 1.0).has_rsample_(False))
        with pyro.plate("p", 2, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        pyro.sample("w", dist.Bernoulli(logits=pyro.param("a") * scope(z)))
        return c

    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        particles = 20_000 if rows else 400
        elbo = TraceELBO("enumerate", num_particles=particles)
        elbo.loss_and_grads(model, guide)
    assert elbo.plan.way.one_by_one is not rows
    q = torch.tensor(0.3).sigmoid()
    z = torch.arange(3.0)
    of_z = torch.stack([(1 - q) ** 2, 2 * q * (1 - q), q**2])
    expected = (of_z * (z + (0.3 * z).sigmoid())).sum()
    # the loss in m: KL of c, m^2 / 2, and the square's mean (E[z + w] + m - 1) m
    assert gradients()["m"].item() == pytest.approx((0.2 + 0.2 + expected - 1).item(), abs=5.5 * 3 / particles**0.5)


def test_a_bound_is_of_all_data_where_a_sum_joins_them():
    """Each datum for itself is no bound then: with many particles it went above the evidence."""
    x = X[:2]

    def model():
        w = pyro.sample("w", dist.Bernoulli(0.3))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2 * z + 3 * w, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(0.6))

    elbo = TraceIWELBO("reinforce", num_particles=2)
    with pytest.warns(UserWarning, match="all data jointly, as site 'w' of the model alone is summed out over all"):
        losses = [elbo.loss(model, guide) for _ in range(20)]
    z = bits(2)
    log_q = dist.Bernoulli(torch.tensor(0.6)).log_prob(z).sum(-1)
    seen = [dist.Normal(2 * z + 3 * w, 1.0).log_prob(x).sum(-1) + math.log(p) for w, p in ((0, 0.7), (1, 0.3))]
    log_w = dist.Bernoulli(torch.tensor(0.4)).log_prob(z).sum(-1) + torch.stack(seen).logsumexp(0) - log_q
    possible = -(torch.logaddexp(log_w[:, None], log_w) - math.log(2)).flatten()
    assert all((possible - loss).abs().min() < 1e-9 for loss in losses)
    with pytest.raises(SettingError, match="no independent data, as site 'w' of the model alone"):
        TraceIWELBO("reinforce", num_particles=2, datum_plates="data").loss(model, guide)


def test_a_walk_ends_at_its_limit():
    walk = JointValues(most=10)
    with pytest.raises(EnumerationError, match="more than 10"):
        for _ in walk:
            walk.choose("a", torch.Size([]), 3)
            walk.choose("b", torch.Size([]), 4)
    with pytest.raises(EnumerationError, match=r"site 'a' have 3 values each, 3\^5"):
        for _ in walk:
            walk.choose("a", torch.Size([5]), 3)

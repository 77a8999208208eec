"""Continuous sites beside sums over discrete ones, with their KL terms in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_discrete import TraceELBO, TraceExpectation

LOGITS = torch.tensor([0.4, -0.3])
GUIDE = dist.Normal(torch.tensor([0.5, -0.2]), torch.tensor([0.7, 1.3]))


def kl(shift):
    return kl_divergence(GUIDE, dist.Normal(shift * torch.ones(2), 1.0))


def plates(model_shift=0.0, scale=1.0):
    """A bit and a continuous site for each of two data; the prior of the latter may depend on the bit."""

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with poutine.scale(scale=scale):
                pyro.sample("c", dist.Normal(model_shift * z, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor([0.3, -1.0]))

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=LOGITS))
            with poutine.scale(scale=scale):
                pyro.sample("c", GUIDE)

    p = LOGITS.sigmoid()
    return model, guide, scale * (p * kl(model_shift) + (1 - p) * kl(0.0)).sum()


def crossed():
    """A later site outside the plate depends on the bits: joint values."""
    model_c, _, expected = plates()

    def model():
        h = pyro.sample("h", dist.Bernoulli(0.4))
        model_c()
        pyro.sample("y", dist.Normal(h, 1.0), obs=torch.tensor(0.2))

    def guide():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=LOGITS))
            pyro.sample("c", GUIDE)
        pyro.sample("h", dist.Bernoulli(logits=z.sum(-1, keepdim=z.dim() > 1) - 1))

    return model, guide, expected


def wide():
    """Sixteen bits that no term joins: element by element."""
    expected = plates()[2]

    def model():
        w = pyro.sample("w", dist.Bernoulli(0.3 * torch.ones(16)).to_event(1))
        pyro.sample("c", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=torch.linspace(-1, 1, 16))

    def guide():
        pyro.sample("w", dist.Bernoulli(logits=torch.linspace(-1, 1, 16)).to_event(1))
        pyro.sample("c", GUIDE.to_event(1))

    return model, guide, expected


def without(*names):
    """A model or guide without these sites' terms."""
    return lambda program: poutine.block(program, hide=names)


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize(
    "program",
    [plates(), plates(model_shift=0.8), plates(scale=2.5), crossed(), wide()],
    ids=["plate", "prior of the bit", "scaled", "joint", "separated"],
)
def test_a_sampled_term_is_replaced_by_its_mean(program, weight):
    """A site that no observation reads leaves no noise behind, and its KL term as an outcome."""
    model, guide, expected = program
    elbo = TraceELBO("enumerate", analytic_kl=True, kl_weight=weight)
    sampled = TraceELBO("enumerate", kl_weight=weight)
    losses = [elbo.loss_and_grads(model, guide) for _ in range(3)]
    assert losses[1:] == pytest.approx(losses[:2], rel=1e-6)
    assert "KL term in closed form" in str(elbo.plan)
    assert len({sampled.loss_and_grads(model, guide) for _ in range(3)}) == 3
    alone = TraceELBO("enumerate", kl_weight=weight)
    rest = alone.loss_and_grads(without("c")(model), without("c")(guide))
    assert losses[0] - rest == pytest.approx(weight * float(expected), rel=1e-4)


def test_a_prior_that_reads_a_site_of_the_model_alone_stays_sampled():
    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("c", dist.Normal(k.to(torch.float), 1.0))
            pyro.sample("d", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=LOGITS))
            pyro.sample("c", GUIDE)
            pyro.sample("d", GUIDE)

    elbo = TraceELBO("enumerate", analytic_kl=True)
    elbo.loss(model, guide)
    notes = {site.name: site.notes for site in elbo.plan.sites}
    assert "closed form" in notes["d"]
    assert "closed form" not in notes["c"]


def test_an_entropy_beside_an_enumerated_reward_is_in_closed_form():
    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("c", dist.Normal(0.0, 1.0))
            pyro.factor("reward", z)

    elbo = TraceExpectation("enumerate", entropy_weight=0.5)
    p = LOGITS.sigmoid()
    entropy = dist.Bernoulli(p).entropy().sum() + GUIDE.entropy().sum()
    for _ in range(2):
        found = elbo.loss_and_grads(model, plates()[1])
        assert found == pytest.approx(-float(p.sum() + 0.5 * entropy), rel=1e-5)
    assert math.isfinite(elbo.loss(model, plates()[1]))


INFINITE = float("inf")


@pytest.mark.parametrize("impossible", ["in the guide", "in both"])
@pytest.mark.parametrize("form", ["Categorical", "OneHotCategorical", "Bernoulli", "bits"])
@pytest.mark.parametrize("estimator", ["rloo", "reinforce", "gumbel_softmax", "enumerate"])
def test_values_that_the_guide_makes_impossible(form, impossible, estimator):
    """Nothing reads the site, so that the gradient is exactly that of the finite divergence, 0 log 0 being 0."""
    w = torch.tensor([0.2, -0.1], requires_grad=True)
    categories = "Categorical" in form
    if not categories and estimator != "gumbel_softmax":
        pytest.skip("Bernoulli.log_prob is NaN at such logits, and every sampled score with it")
    least = torch.tensor([-INFINITE])

    def logits(free):
        return torch.cat([free, least]) if categories else torch.cat([free, least, -least])

    prior = torch.tensor([0.25, 0.25, 0.5]) if categories else torch.tensor([0.3, 0.6, 0.2, 0.7])
    if impossible == "in both":
        prior = torch.tensor([0.4, 0.6, 0.0]) if categories else torch.tensor([0.3, 0.6, 0.0, 1.0])

    def site(**given):
        if form == "bits":
            return dist.Bernoulli(**given).to_event(1)
        return getattr(dist, form)(**given)

    def draw(fn):
        if form == "Bernoulli":
            with pyro.plate("data", 4):
                pyro.sample("z", fn)
        else:
            pyro.sample("z", fn)

    if categories:
        q = w.softmax(-1)
        expected = (q * (q / prior[:2]).log()).sum()
    else:
        q = w.sigmoid()
        expected = (q * (q / prior[:2]).log() + (1 - q) * ((1 - q) / (1 - prior[:2])).log()).sum()
        if impossible == "in the guide":
            expected = expected - torch.tensor(0.8 * 0.7).log()
    (slope,) = torch.autograd.grad(expected, w)
    elbo = TraceELBO(estimator, num_particles=2, analytic_kl=True)
    loss = elbo.loss_and_grads(lambda: draw(site(probs=prior)), lambda: draw(site(logits=logits(w))))
    assert loss == pytest.approx(float(expected), abs=1e-5)
    assert torch.allclose(w.grad, slope, atol=1e-5)

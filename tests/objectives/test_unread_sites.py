"""Sites that no term but their own depends on, with that in closed form: its gradient is exact, nothing is sampled."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO, available_estimators
from pyro_discrete.families import Family

UNREAD = [
    name
    for name, info in available_estimators().items()
    if not info.cls().importance_weighted and name != "reweighted_wake_sleep"
]


@pytest.mark.parametrize("form", ["bits in a plate", "categories", "alone"])
@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("settings", [{}, {"vectorize_particles": False}, {"compile": "graph"}], ids=str)
def test_the_gradient_of_its_divergence_is_exact(name, form, settings):
    estimator = available_estimators()[name].cls()
    if (Family.CATEGORICAL if form == "categories" else Family.BERNOULLI) not in estimator.families:
        pytest.skip("does not serve such sites")
    pyro.set_rng_seed(0)
    logits = torch.tensor([0.3, -0.7, 0.1], requires_grad=True)
    z = torch.tensor(0.2, requires_grad=True)
    make = dist.Categorical if form == "categories" else dist.Bernoulli
    prior = torch.tensor([0.2, 0.5, 0.3])

    def unread(given, value):
        if form == "categories":
            pyro.sample("dead", make(**{given: value}))
            return
        with pyro.plate("data", 3):
            pyro.sample("dead", make(**{given: value}))

    def model():
        unread("probs", prior)
        if form != "alone":
            read = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(read, 1.0), obs=torch.tensor(0.5))

    def guide():
        unread("logits", logits)
        if form != "alone":
            pyro.sample("z", dist.Bernoulli(logits=z))

    expected = torch.distributions.kl_divergence(make(logits=logits), make(probs=prior)).sum()
    (slope,) = torch.autograd.grad(expected, logits)
    by_site = {"dead": estimator} | ({} if form == "alone" else {"z": "reinforce"})
    elbo = TraceELBO(by_site, num_particles=max(2, estimator.min_particles), analytic_kl=True, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            logits.grad = None
            loss = elbo.loss_and_grads(model, guide)
            assert torch.allclose(logits.grad, slope, atol=1e-5)
            if form == "alone":
                assert loss == pytest.approx(float(expected), abs=1e-5)

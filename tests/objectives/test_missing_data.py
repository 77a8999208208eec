"""Data with gaps: right where the distribution leaves them out by itself, else refused with what helps."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import DiscretePosterior, TraceELBO, TraceExpectation, TraceIWELBO
from pyro_discrete.errors import MissingDataError, SiteMatchError

GAP = float("nan")
X = torch.tensor([0.3, GAP, -1.0, 2.0])
SEEN = ~X.isnan()


def pair(likelihood, obs=X, guided=True):
    a, s = torch.tensor(0.4, requires_grad=True), torch.tensor(1.2, requires_grad=True)

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            likelihood(z, s, obs)

    def guide():
        if guided:
            with pyro.plate("data", 4):
                pyro.sample("z", dist.Bernoulli(logits=a.expand(4)))

    return model, guide, a, s


def by_itself(z, s, obs):
    pyro.sample("x", dist.NanMaskedNormal(2.0 * z, s), obs=obs)


def filled(z, s, obs):
    with poutine.mask(mask=SEEN):
        pyro.sample("x", dist.Normal(2.0 * z, s), obs=obs.nan_to_num())


@pytest.mark.parametrize("likelihood", [by_itself, filled], ids=["NanMaskedNormal", "filled under a mask"])
@pytest.mark.parametrize("compile", [False, "graph"])
def test_what_is_seen_counts(likelihood, compile):
    model, guide, a, s = pair(likelihood)
    q = torch.stack([1 - a.sigmoid(), a.sigmoid()]).unsqueeze(-1)
    given = torch.stack([dist.Normal(2.0 * z, s).log_prob(X.nan_to_num()) * SEEN for z in (0.0, 1.0)])
    loss = (q * (q.log() - given - torch.tensor([[0.7], [0.3]]).log())).sum()
    slopes = torch.stack(torch.autograd.grad(loss, [a, s]))
    elbo = TraceELBO("enumerate", compile=compile)
    for _ in range(3):
        a.grad = s.grad = None
        assert elbo.loss_and_grads(model, guide) == pytest.approx(float(loss), rel=1e-5)
        assert torch.allclose(torch.stack([a.grad, s.grad]), slopes, atol=1e-5)
    for sampled in (TraceELBO("rloo", num_particles=4_000), TraceExpectation("rloo", num_particles=4_000)):
        assert math.isfinite(sampled.loss_and_grads(model, guide))
        assert a.grad.isfinite()
        assert s.grad.isfinite()


def test_on_the_bound_and_summed_out():
    model, nothing, _, s = pair(by_itself, guided=False)
    given = torch.stack([dist.Normal(2.0 * z, s).log_prob(X.nan_to_num()) * SEEN for z in (0.0, 1.0)])
    joint = given + torch.tensor([[0.7], [0.3]]).log()
    evidence = -float(joint.logsumexp(0).sum())
    for elbo in (TraceELBO("nvil"), TraceIWELBO(num_particles=2)):
        assert elbo.loss_and_grads(model, nothing) == pytest.approx(evidence, rel=1e-5)
    marginal = DiscretePosterior(model).marginals()["z"].probs
    assert torch.allclose(marginal.float(), joint.softmax(0)[1], atol=1e-5)


def bare(z, s, obs):
    pyro.sample("x", dist.Normal(2.0 * z, s), obs=obs)


def masked(z, s, obs):
    with poutine.mask(mask=SEEN):
        bare(z, s, obs)


def masked_unchecked(z, s, obs):
    with poutine.mask(mask=SEEN):
        pyro.sample("x", dist.Normal(2.0 * z, s, validate_args=False), obs=obs)


def masked_inside(z, s, obs):
    pyro.sample("x", dist.Normal(2.0 * z, s).mask(SEEN), obs=obs)


@pytest.mark.parametrize("likelihood", [bare, masked, masked_unchecked, masked_inside])
@pytest.mark.parametrize("estimator", ["enumerate", "reinforce"])
def test_gaps_that_reach_a_gradient_are_refused_with_what_helps(likelihood, estimator):
    model, guide, _, _ = pair(likelihood)
    with pytest.raises(MissingDataError, match=r"'x'.*nan_to_num"):
        TraceELBO(estimator).loss(model, guide)
    with pytest.raises(MissingDataError, match=r"'x'.*nan_to_num"):
        TraceELBO(estimator).loss_and_grads(model, guide)
    with pytest.raises(MissingDataError, match=r"'x'.*nan_to_num"):
        DiscretePosterior(model).marginals()


@pytest.mark.parametrize("estimator", ["auto", "rloo"])
def test_obs_mask_of_values_that_cannot_be_summed_over_is_refused_by_its_name(estimator):
    def observed(z, s, obs):
        pyro.sample("x", dist.Normal(2.0 * z, s), obs=obs.nan_to_num(), obs_mask=SEEN)

    model, guide, _, _ = pair(observed)
    with pytest.raises(SiteMatchError, match=r"obs_mask.*poutine.mask"):
        TraceELBO(estimator, num_particles=2).loss(model, guide)

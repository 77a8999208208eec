"""KL terms weighed, closed or relaxed, beside sites that the model sums out: exact answers, or one clear refusal.

Means of hard draws are exact (every value is forced); of relaxed ones they are compared with quadrature, within five
standard errors of 40 calls' mean: error probability below 2e-5 a number, 12 numbers, under fixed seeds.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence
from torch.nn.functional import logsigmoid

from pyro_discrete import GumbelSoftmax, TraceELBO, TraceExpectation
from pyro_discrete.errors import EnumerationError, SettingError
from pyro_discrete.relaxations.point import log_density
from tests.support.forced import Forced, mean_gradient

DOUBLE = torch.float64
DATUM = torch.tensor(1.1, dtype=DOUBLE)
TEMPERATURE, PRIOR_TEMPERATURE = 0.7, 0.5


class Pair:
    """A bit of the guide beside a bit of the model alone, which is above it or below it; with a datum or without."""

    def __init__(self, above, observed=True):
        self.phi = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
        self.above, self.observed = above, observed

    def log_priors(self, y):
        """Logits of z, and of y, as functions of the other's value."""
        return 1.5 * y - 0.4 if self.above else torch.tensor(-0.4, dtype=DOUBLE)

    def model(self):
        if self.above:
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)))
            z = pyro.sample("z", dist.Bernoulli(logits=self.log_priors(y)))
        else:
            z = pyro.sample("z", dist.Bernoulli(logits=self.log_priors(None)))
            y = pyro.sample("y", dist.Bernoulli(logits=0.8 - 1.5 * z))
        if self.observed:
            pyro.sample("x", dist.Normal(z + 0.5 * y, 0.7), obs=DATUM)

    def guide(self):
        pyro.sample("z", dist.Bernoulli(logits=self.phi))

    def log_joint(self, z, y, log_p_z):
        """log p(y) + log p(x | z, y), and log p(z | y) by `log_p_z(its logit)`; `[...]` as z."""
        logit = math.log(0.3 / 0.7) * torch.ones_like(z) if self.above else 0.8 - 1.5 * z
        of_y = logsigmoid(logit if y else -logit)
        of_x = dist.Normal(z + 0.5 * y, 0.7).log_prob(DATUM)
        return of_y, of_x, log_p_z(self.log_priors(torch.tensor(float(y), dtype=DOUBLE)))

    def cost(self, z, log_q, log_p_z, weight=1.0):
        """Minus the objective at z `[...]`, the model's own bit summed out."""
        parts = [self.log_joint(z, y, log_p_z) for y in (0, 1)]
        if self.above:
            return weight * log_q - torch.stack([sum(part) for part in parts]).logsumexp(0)
        marginal = torch.stack([of_y + of_x for of_y, of_x, _ in parts]).logsumexp(0)
        return weight * (log_q - parts[0][2]) - marginal

    def exact(self, weight=1.0):
        """Its gradient, by the sum over both bits."""
        phi, total = self.phi.detach().clone().requires_grad_(), torch.zeros((), dtype=DOUBLE)
        for z in (0.0, 1.0):
            value, sign = torch.tensor(z, dtype=DOUBLE), 2 * z - 1
            log_q = logsigmoid(sign * phi)
            cost = self.cost(value, log_q, lambda logit, sign=sign: logsigmoid(sign * logit), weight)
            total = total + log_q.exp() * cost
        return torch.autograd.grad(total, phi)[0]

    def relaxed(self, weight=1.0):
        """Loss and gradient of the relaxed objective, with densities of relaxed bits, by quadrature."""
        phi = self.phi.detach().clone().requires_grad_()
        u = torch.linspace(-50, 50, 200_001, dtype=DOUBLE)
        log_q = log_density(u, phi.expand_as(u), TEMPERATURE, one_hot=False)

        def log_p_z(logit):
            return log_density(u, torch.as_tensor(logit).expand_as(u), PRIOR_TEMPERATURE, one_hot=False)

        total = torch.trapezoid(log_q.exp() * self.cost(u.sigmoid(), log_q, log_p_z, weight), u)
        return total.item(), torch.autograd.grad(total, phi)[0].item()


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("estimator", [Forced(), "enumerate"])
def test_weighed_and_closed_terms_above_a_site_that_is_summed_out(estimator, closed, weight):
    pair = Pair(above=False)
    elbo = TraceELBO(estimator, analytic_kl=closed, kl_weight=weight)
    if estimator == "enumerate":
        elbo.loss_and_grads(pair.model, pair.guide)
        found = pair.phi.grad
    else:
        found = mean_gradient(elbo, pair.model, pair.guide, ["z"], pair.phi)
        assert ("KL term in closed form" in str(elbo.plan)) is closed
    torch.testing.assert_close(found, pair.exact(weight), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("estimator", [Forced(), "enumerate"])
def test_a_prior_that_is_summed_out_is_not_closed_and_the_plan_says_so(estimator, closed):
    pair = Pair(above=True)
    elbo = TraceELBO(estimator, analytic_kl=closed)
    if estimator == "enumerate":
        elbo.loss_and_grads(pair.model, pair.guide)
        found = pair.phi.grad
    else:
        found = mean_gradient(elbo, pair.model, pair.guide, ["z"], pair.phi)
        reason = "KL term sampled (its prior depends on a site of the model alone, which is summed out)"
        assert (reason in str(elbo.plan)) is closed
    torch.testing.assert_close(found, pair.exact(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["reinforce", "enumerate", "disarm", "gumbel_softmax"])
def test_a_prior_that_is_summed_out_is_not_weighed(estimator):
    """The sum of a weighed and an unweighed log-probability is no marginal likelihood."""
    pair = Pair(above=True)
    with pytest.raises(EnumerationError, match=r"Sites 'y' of the model alone.*the scales of these differ.*kl_weight"):
        TraceELBO(estimator, kl_weight=0.5).loss_and_grads(pair.model, pair.guide)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize(
    ("kl", "closed"), [("analytic", False), ("analytic", True), ("linear", True)], ids=["analytic", "both", "closed"]
)
def test_analytic_divergences_of_relaxed_sites_are_weighed_exactly_draw_by_draw(kl, closed, weight):
    """Without a datum the objective is the weighed divergence alone: what is summed out below adds up to one."""
    pair = Pair(above=False, observed=False)
    elbo = TraceELBO(GumbelSoftmax(TEMPERATURE, kl=kl), num_particles=3, analytic_kl=closed, kl_weight=weight)
    loss = elbo.loss_and_grads(pair.model, pair.guide)
    q, p = dist.Bernoulli(logits=pair.phi), dist.Bernoulli(logits=torch.tensor(-0.4, dtype=DOUBLE))
    exact = weight * kl_divergence(q, p)
    assert loss == pytest.approx(exact.item())
    torch.testing.assert_close(pair.phi.grad, torch.autograd.grad(exact, pair.phi)[0])


@pytest.mark.statistical
@pytest.mark.parametrize(("above", "weight"), [(False, 1.0), (False, 0.5), (True, 1.0)])
def test_relaxed_densities_beside_a_site_that_is_summed_out(above, weight):
    """Loss and gradient of the relaxed objective, where the sum is over y given a relaxed z or z's own density."""
    pair, losses, gradients = Pair(above), [], []
    torch.manual_seed(0)
    estimator = GumbelSoftmax(TEMPERATURE, kl="relaxed", prior_temperature=PRIOR_TEMPERATURE)
    elbo = TraceELBO(estimator, num_particles=2_000, kl_weight=weight)
    for _ in range(40):
        pair.phi.grad = None
        losses.append(elbo.loss_and_grads(pair.model, pair.guide))
        gradients.append(pair.phi.grad.item())
    for found, exact in zip((losses, gradients), pair.relaxed(weight), strict=True):
        sample = torch.tensor(found, dtype=DOUBLE)
        assert abs(sample.mean().item() - exact) < 5 * sample.std().item() / math.sqrt(len(sample))


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_analytic_divergence_is_linear_where_the_prior_is_summed_out(vectorize):
    """Inside the logarithm of a sum the log-mass at the probabilities is no divergence."""
    found = []
    for kl in ("analytic", "linear"):
        pair = Pair(above=True)
        torch.manual_seed(0)
        elbo = TraceELBO(GumbelSoftmax(TEMPERATURE, kl=kl), num_particles=3, vectorize_particles=vectorize)
        found.append((elbo.loss_and_grads(pair.model, pair.guide), pair.phi.grad.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_two_divergences_are_one_too_many():
    pair = Pair(above=False)
    for spec, where in ((GumbelSoftmax(kl="relaxed"), ""), ({"z": GumbelSoftmax(kl="relaxed")}, "'z'.*")):
        with pytest.raises(SettingError, match=f"kl=relaxed.*{where}Leave out analytic_kl, or use kl='linear'"):
            TraceELBO(spec, analytic_kl=True).loss_and_grads(pair.model, pair.guide)
    guided = Pair(above=False)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("reward", -z)

    losses = [TraceExpectation(GumbelSoftmax(kl=kl)) for kl in ("relaxed", "linear")]
    found = []
    for elbo in losses:
        torch.manual_seed(0)
        found.append(elbo.loss_and_grads(model, guided.guide))
    assert found[0] == found[1]  # where no prior counts, nothing is scored twice

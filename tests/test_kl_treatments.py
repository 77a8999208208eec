"""The three objectives of the Gumbel-Softmax: what each scores a relaxed site at."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_discrete import REBAR, GumbelSoftmax, TraceELBO
from pyro_discrete.errors import SettingError
from pyro_discrete.relaxations.point import log_density
from tests.support.pairs import DATA, chain_guide, gradients, layers, layers_guide

DOUBLE = torch.float64


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_densities_are_those_of_the_relaxed_distributions(temperature):
    torch.manual_seed(0)
    t, logits = torch.tensor(temperature, dtype=DOUBLE), torch.randn(50, 4, dtype=DOUBLE)
    y = LogitRelaxedBernoulli(t, logits=logits).sample()
    found = log_density(y, logits, temperature, one_hot=False)
    torch.testing.assert_close(found, LogitRelaxedBernoulli(t, logits=logits).log_prob(y))
    reference = ExpRelaxedCategorical(t, logits=logits)
    x = reference.sample()
    shift = torch.randn(50, 1, dtype=DOUBLE)
    torch.testing.assert_close(log_density(x + shift, logits, t, one_hot=True), reference.log_prob(x))


def test_density_of_a_bit_integrates_to_one():
    y = torch.linspace(-400, 400, 400_001, dtype=DOUBLE)
    for temperature in (0.1, 1.0):
        density = log_density(y, torch.tensor(1.3, dtype=DOUBLE), temperature, one_hot=False).exp()
        assert torch.trapezoid(density, y).item() == pytest.approx(1.0, abs=1e-6)


def test_density_where_categories_are_impossible_is_that_of_the_others():
    logits = torch.tensor([0.3, -torch.inf, -1.0, 0.4], dtype=DOUBLE, requires_grad=True)
    t = torch.tensor(0.01, dtype=DOUBLE, requires_grad=True)
    u = GumbelSoftmax().unsquashed(logits, t, one_hot=True)
    found = log_density(u, logits, t, one_hot=True)
    kept = [0, 2, 3]
    torch.testing.assert_close(found, log_density(u[kept], logits[kept], t, one_hot=True))
    found.backward()
    assert bool(logits.grad.isfinite().all())
    assert bool(t.grad.isfinite())


LOGITS = torch.tensor([[0.5, -1.0, 0.2], [1.2, 0.0, -0.4]], dtype=DOUBLE)
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE).log()


def make(family):
    """A pair with no likelihood, whose exact gradient is that of the divergence of guide and prior."""
    classes = {"bits": dist.Bernoulli, "integers": dist.Categorical, "one-hot": dist.OneHotCategorical}
    phi = LOGITS.clone().requires_grad_()
    prior = classes[family](logits=PRIOR.expand(2, 3).clone())

    def model():
        with pyro.plate("items", 2):
            pyro.sample("z", prior.to_event(1) if family == "bits" else prior)

    def guide():
        fn = classes[family](logits=phi)
        with pyro.plate("items", 2):
            pyro.sample("z", fn.to_event(1) if family == "bits" else fn)

    divergence = kl_divergence(classes[family](logits=phi), prior).sum()
    (exact,) = torch.autograd.grad(divergence, phi)
    return model, guide, phi, divergence.item(), exact


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("family", "kl"),
    [("bits", "analytic"), ("integers", "analytic"), ("one-hot", "analytic"), ("bits", "auto"), ("one-hot", "auto")],
)
def test_analytic_divergence_is_exact_draw_by_draw(family, kl, vectorize):
    model, guide, phi, divergence, exact = make(family)
    elbo = TraceELBO(GumbelSoftmax(kl=kl), num_particles=3, vectorize_particles=vectorize)
    for _ in range(2):
        phi.grad = None
        assert elbo.loss_and_grads(model, guide) == pytest.approx(divergence)
        torch.testing.assert_close(phi.grad, exact)
    assert "; KL term analytic" in str(elbo.plan)


def test_by_default_the_divergence_of_integers_is_linear():
    model, guide, phi, divergence, _ = make("integers")
    found = []
    for estimator in (GumbelSoftmax(), GumbelSoftmax(kl="linear")):
        torch.manual_seed(0)
        phi.grad = None
        elbo = TraceELBO(estimator)
        loss = elbo.loss_and_grads(model, guide)
        assert loss != pytest.approx(divergence)
        found.append((loss, phi.grad.clone()))
        assert ("KL term linear (the default at integers)" in str(elbo.plan)) is (estimator.kl == "auto")
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.statistical
@pytest.mark.parametrize("family", ["bits", "integers", "one-hot"])
def test_relaxed_divergence_is_the_mean_difference_of_densities(family):
    """Against torch's relaxed distributions at the two temperatures, 100,000 draws, five standard errors (6e-7)."""
    model, guide, _, _, _ = make(family)
    torch.manual_seed(0)
    posterior, prior = torch.tensor(0.7, dtype=DOUBLE), torch.tensor(0.4, dtype=DOUBLE)
    relaxed = LogitRelaxedBernoulli if family == "bits" else ExpRelaxedCategorical
    q, p = relaxed(posterior, logits=LOGITS), relaxed(prior, logits=PRIOR.expand(2, 3))
    y = q.sample((100_000,))
    each = (q.log_prob(y) - p.log_prob(y)).reshape(100_000, -1).sum(-1)
    elbo = TraceELBO(GumbelSoftmax(0.7, kl="relaxed", prior_temperature=0.4), num_particles=100_000)
    found = elbo.loss_and_grads(model, guide)
    assert found == pytest.approx(each.mean().item(), abs=5 * math.sqrt(2) * each.std().item() / math.sqrt(100_000))


@pytest.mark.parametrize("family", ["bits", "one-hot"])
def test_relaxed_divergence_vanishes_draw_by_draw_where_guide_is_prior(family):
    model, _, _, _, _ = make(family)
    elbo = TraceELBO(GumbelSoftmax(0.5, kl="relaxed"))
    assert elbo.loss_and_grads(model, model) == pytest.approx(0.0, abs=1e-12)


WIDTH = 0.4


def one_bit(prior):
    def model():
        z = pyro.sample("z", dist.Bernoulli(logits=torch.tensor(prior, dtype=DOUBLE)))
        pyro.sample("x", dist.Normal(2 * z, WIDTH), obs=torch.tensor(1.1, dtype=DOUBLE))

    return model


@pytest.mark.statistical
@pytest.mark.parametrize("phi", [-1.0, 0.3, 2.0])
def test_relaxed_loss_bounds_the_relaxed_evidence(phi):
    """The evidence of the relaxed model is had by quadrature; `loss()` is the discrete objective."""

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=torch.tensor(phi, dtype=DOUBLE)))

    y = torch.linspace(-60, 60, 200_001, dtype=DOUBLE)
    joint = log_density(y, torch.tensor(-0.4, dtype=DOUBLE), 1.0, one_hot=False)
    joint = joint + dist.Normal(2 * y.sigmoid(), WIDTH).log_prob(torch.tensor(1.1, dtype=DOUBLE))
    evidence = torch.trapezoid(joint.exp(), y).log().item()
    torch.manual_seed(0)

    elbo = TraceELBO(GumbelSoftmax(1.0, kl="relaxed"), num_particles=200_000)
    assert elbo.loss_and_grads(one_bit(-0.4), guide) > -evidence
    discrete = TraceELBO("enumerate").loss(one_bit(-0.4), guide)
    assert elbo.loss(one_bit(-0.4), guide) == pytest.approx(discrete, rel=0.02)


@pytest.mark.parametrize("kl", ["analytic", "relaxed"])
def test_layers_have_priors_that_depend_on_relaxed_values(kl):
    """Every parameter of the guide and of the model's prior of the lower layer gets a finite gradient."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    for particles in (1, 4):
        for vectorize in (True, False):
            elbo = TraceELBO(GumbelSoftmax(kl=kl), num_particles=particles, vectorize_particles=vectorize)
            elbo.loss_and_grads(layers, layers_guide, DATA)
            assert all(bool(g.isfinite().all()) for g in gradients().values())


def chain(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(torch.full((len(x),), 0.4, dtype=DOUBLE)))
        b = pyro.sample("b", dist.Bernoulli(logits=2 * a - 0.5))
        pyro.sample("x", dist.Normal(a + b, 0.7), obs=x)


@pytest.mark.statistical
@pytest.mark.parametrize("kl", ["analytic", "relaxed"])
@pytest.mark.parametrize("above", ["rebar", "disarm", "rloo"])
def test_beside_an_estimator_of_several_rows_upstream(above, kl):
    """Run all at once and column by column: mean gradients agree within five standard errors (6e-7)."""
    x, found = torch.tensor([1.5, -0.2], dtype=DOUBLE), []
    for vectorize, calls, particles in ((True, 100, 20), (False, 40, 2)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        first = REBAR(learn=False) if above == "rebar" else above
        spec = {"a": first, "b": GumbelSoftmax(0.7, kl=kl)}
        elbo = TraceELBO(spec, num_particles=particles, vectorize_particles=vectorize)
        each = []
        for _ in range(calls):
            elbo.loss_and_grads(chain, chain_guide, x)
            each.append(pyro.param("phi").grad.clone())
            pyro.param("phi").grad = None
        samples = torch.stack(each)
        found.append((samples.mean(), samples.std() / math.sqrt(calls)))
    (all_at_once, first), (one_by_one, second) = found
    assert abs(all_at_once - one_by_one) < 5 * (first**2 + second**2).sqrt()


@pytest.mark.parametrize(
    "settings", [{"kl": "exact"}, {"prior_temperature": 0.5}, {"kl": "relaxed", "prior_temperature": -1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError, match="given"):
        GumbelSoftmax(**settings)

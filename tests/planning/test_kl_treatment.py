"""The three objectives of the Gumbel-Softmax: what each scores a relaxed site at.

Behind that, sites that have no analytic divergence, or would have a wrong one: theirs is linear.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMessenger
from torch.distributions import kl_divergence
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_discrete import REBAR, GumbelSoftmax, TraceELBO, TraceIWELBO
from pyro_discrete.draws.soft_scores import log_density
from pyro_discrete.errors import SettingError
from tests.support.pairs import DATA, chain_guide, gradients, layers, layers_guide

DOUBLE = torch.float64
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE).log()


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


# Where the divergence is left linear


def opposite(x):
    """The guide draws a and then b from it, the model b and then a: a's prior depends on what is drawn from a."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(torch.full((len(x),), 0.4, dtype=DOUBLE)))
        a = pyro.sample("a", dist.Bernoulli(logits=3 * b - 1.5))
        pyro.sample("x", dist.Normal(a + b, 0.7), obs=x)


def on_two_bits(estimator, objective, particles):
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = torch.tensor([1.5, -0.2], dtype=DOUBLE)
    elbo = objective(estimator, num_particles=particles)
    loss = elbo.loss_and_grads(opposite, chain_guide, x)
    return loss, pyro.param("phi").grad.item(), str(elbo.plan)


def test_an_analytic_divergence_is_left_out_where_it_would_be_wrong():
    """a is scored linearly there, as on the importance-weighted bound both sites are."""
    linear, mixed = GumbelSoftmax(0.5, kl="linear"), {"a": GumbelSoftmax(0.5, kl="linear"), "b": GumbelSoftmax(0.5)}
    for estimator in (GumbelSoftmax(0.5), GumbelSoftmax(0.5, kl="analytic")):
        both = on_two_bits(estimator, TraceELBO, 4)
        assert both[:2] == on_two_bits(mixed, TraceELBO, 4)[:2]
        assert both[:2] != on_two_bits(linear, TraceELBO, 4)[:2]
        assert both[2].count("; KL term linear (its prior depends on what the guide draws from it)") == 1
        assert both[2].count("; KL term analytic") == 1
        bound = on_two_bits(estimator, TraceIWELBO, 4)
        assert bound[:2] == on_two_bits(linear, TraceIWELBO, 4)[:2]
        assert bound[2].count("; KL term linear (on this objective it is no term by itself)") == 2


def pair_of(guide_fn, model_fn, value=lambda z: z):
    """One site of these distributions."""

    def model():
        z = pyro.sample("z", model_fn)
        pyro.sample("x", dist.Normal(1.0 * value(z), 1.0), obs=torch.tensor(0.8, dtype=DOUBLE))

    return model, lambda: pyro.sample("z", guide_fn(pyro.param("phi", torch.tensor([0.3, -0.2, 0.1], dtype=DOUBLE))))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (
            pair_of(
                lambda phi: dist.Multinomial(3, logits=phi), dist.Multinomial(3, logits=PRIOR), lambda z: z[..., 0]
            ),
            "a Multinomial's has no closed form",
        ),
        (
            pair_of(
                lambda phi: dist.OneHotCategorical(logits=phi), dist.Multinomial(1, logits=PRIOR), lambda z: z[..., 0]
            ),
            "Multinomial in the model",
        ),
    ],
    ids=["multinomial", "other family"],
)
@pytest.mark.parametrize("kl", ["auto", "analytic"])
def test_sites_without_an_analytic_divergence_are_linear_and_the_plan_says_so(pair, reason, kl):
    found = []
    for chosen in (kl, "linear"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        elbo = TraceELBO(GumbelSoftmax(0.5, kl=chosen), num_particles=2)
        found.append((elbo.loss_and_grads(*pair), pyro.param("phi").grad.clone()))
        assert (f"; KL term linear ({reason})" in str(elbo.plan)) is (chosen == kl)
    torch.testing.assert_close(*found, rtol=0, atol=0)


class RunsTheModel(AutoMessenger):
    """A guide of one bit that runs the model."""

    def get_posterior(self, name, prior):
        return dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.2)))


def plain_bit(*args):
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))


def plain_bit_guide(*args):
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.2))))


def on_one_bit(elbo, guide, *args):
    torch.manual_seed(0)
    elbo.loss(plain_bit, guide, *args)
    pyro.param("phi").grad = None
    torch.manual_seed(0)
    return elbo.loss_and_grads(plain_bit, guide, *args), pyro.param("phi").grad.item()


def test_a_guide_that_runs_the_model_itself_has_a_linear_divergence():
    pyro.clear_param_store()
    guide = RunsTheModel(plain_bit)
    elbo = TraceELBO(GumbelSoftmax())
    assert on_one_bit(elbo, guide) == on_one_bit(TraceELBO(GumbelSoftmax(kl="linear")), guide)
    assert "; KL term linear (the guide runs the model itself)" in str(elbo.plan)


def test_a_site_whose_prior_can_no_longer_be_followed_is_linear_from_then_on():
    """A whole number among the arguments that is new in every call: after eight of them nothing is known."""
    pyro.clear_param_store()
    elbo, linear = TraceELBO("gumbel_softmax"), TraceELBO(GumbelSoftmax(kl="linear"))
    for number in range(8):
        assert on_one_bit(elbo, plain_bit_guide, number) != on_one_bit(linear, plain_bit_guide, number)
    assert "; KL term analytic" in str(elbo.plan)
    with pytest.warns(UserWarning, match="'z' was analytic so far and is linear from now on.*kl='linear'"):
        on_one_bit(elbo, plain_bit_guide, 8)
    assert "; KL term linear (its prior may depend" in str(elbo.plan)
    assert on_one_bit(elbo, plain_bit_guide, 0) == on_one_bit(linear, plain_bit_guide, 0)


def test_a_site_that_is_met_after_planning_is_linear_and_the_plan_says_so():
    found, chance = [], torch.tensor(0.01)

    def sites():  # a draw decides, so that this is no branch that would be planned by itself
        return ["a", "b"] if pyro.sample("both", dist.Bernoulli(chance)).item() else ["a"]

    def model():
        for name in sites():
            z = pyro.sample(name, dist.Bernoulli(0.3))
            pyro.sample(f"x_{name}", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

    def guide():
        for name in sites():
            pyro.sample(name, dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.2))))

    for kl in ("auto", "linear"):
        pyro.clear_param_store()
        chance.fill_(0.01)
        elbo = TraceELBO({"both": "reinforce", "*": GumbelSoftmax(kl=kl)}, vectorize_particles=False)
        torch.manual_seed(0)
        elbo.loss(model, guide)
        chance.fill_(0.99)
        torch.manual_seed(0)
        found.append(elbo.loss_and_grads(model, guide))
        assert ("; KL term linear (the site was met after planning)" in str(elbo.plan)) is (kl == "auto")
    assert found[0] == found[1]  # of a program whose draws decide nothing is known

"""Where a Gumbel-Softmax site has no analytic divergence, or would have a wrong one, its divergence is linear."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMessenger

from pyro_discrete import GumbelSoftmax, TraceELBO, TraceIWELBO
from tests.support.pairs import chain_guide

DOUBLE = torch.float64
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE).log()


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
    there, found = ["a"], []

    def model():
        for name in there:
            z = pyro.sample(name, dist.Bernoulli(0.3))
            pyro.sample(f"x_{name}", dist.Normal(z, 1.0), obs=torch.tensor(0.8))

    def guide():
        for name in there:
            pyro.sample(name, dist.Bernoulli(logits=pyro.param("phi", torch.tensor(0.2))))

    for kl in ("auto", "linear"):
        pyro.clear_param_store()
        there[:] = ["a"]
        elbo = TraceELBO(GumbelSoftmax(kl=kl), vectorize_particles=False)
        elbo.loss(model, guide)
        there.append("b")
        torch.manual_seed(0)
        found.append(elbo.loss_and_grads(model, guide))
        assert ("; KL term linear (the site was met after planning)" in str(elbo.plan)) is (kl == "auto")
    assert found[0] != found[1]  # a, whose dependencies were known

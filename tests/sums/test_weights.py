"""Masks, scales, factors that read a draw which is summed out: exact against every joint value, or refused by name."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO
from pyro_discrete.errors import EnumerationError
from tests.support.exact_sums import agrees, nothing

X = torch.tensor([0.3, 2.0, -1.0])


def weights():
    return pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]))


def masked():
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(weights()))
        with poutine.mask(mask=z != 1):
            pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)


def masked_within():
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.OneHotCategorical(weights()))
        pyro.sample("x", dist.Normal(2.0, 1.0).mask(z[..., 2] == 1), obs=X)


def factored():
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(weights()))
        with poutine.mask(mask=z > 0):
            pyro.factor("f", X)


def from_outside():
    z = pyro.sample("z", dist.Categorical(weights()))
    with pyro.plate("data", 3), poutine.scale(scale=0.3), poutine.mask(mask=z != 1):
        pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)


def nested():
    with pyro.plate("rows", 2, dim=-2):
        z = pyro.sample("z", dist.Categorical(weights()))
        with pyro.plate("columns", 3, dim=-1), poutine.mask(mask=z > 0):
            pyro.sample("x", dist.Normal(torch.full((2, 3), 2.0), 1.0), obs=X.expand(2, 3))


def masked_sites_too():
    with pyro.plate("data", 3), poutine.scale(scale=0.7):
        z = pyro.sample("z", dist.Categorical(weights()))
        with poutine.mask(mask=z > 0):
            y = pyro.sample("y", dist.Bernoulli(0.6))
            pyro.sample("x", dist.Normal(2 * y, 1.0), obs=X)


@pytest.mark.parametrize("model", [masked, masked_within, factored, nested, masked_sites_too])
def test_a_term_that_a_draw_reaches_by_its_weight_alone(model):
    agrees(model, nothing)
    agrees(model, nothing, "rloo", num_particles=2)
    agrees(model, nothing, compile="graph")


def test_a_mask_in_a_plate_that_reads_a_draw_outside():
    def model():
        z = pyro.sample("z", dist.Categorical(weights()))
        with pyro.plate("data", 3), poutine.mask(mask=z != 1):
            pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)

    agrees(model, nothing)
    with pytest.raises(EnumerationError, match="scales of these differ"):
        TraceELBO().loss(from_outside, nothing)


def test_posterior_and_bound_see_the_mask():
    p = dist.Normal(2.0, 1.0).log_prob(X).exp().unsqueeze(-1)
    joint = torch.tensor([0.2, 0.3, 0.5]) * torch.where(torch.tensor([True, False, True]), p, torch.ones(()))
    found = DiscretePosterior(masked).marginals()["z"].probs
    assert torch.allclose(found.float(), joint / joint.sum(-1, keepdim=True), atol=1e-5)
    exact = -joint.sum(-1).log().sum().item()
    assert TraceIWELBO(num_particles=2).loss(masked, nothing) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("estimator", ["enumerate", "rloo"])
def test_a_scale_of_many_values_is_refused_by_name(estimator):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with poutine.scale(scale=0.5 + z):
                pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)

    with pytest.raises(EnumerationError, match=r"'x' has a poutine\.scale of shape .*site that is summed out"):
        TraceELBO(estimator, num_particles=2).loss(model, nothing)
    with pytest.raises(EnumerationError, match=r"'x' has a poutine\.scale"):
        DiscretePosterior(model).marginals()


@pytest.mark.parametrize("weigh", ["mask", "scale", "both"])
def test_weights_that_read_an_enumerated_draw_of_the_guide(weigh):
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            o = pyro.sample("o", dist.Categorical(weights())) if weigh == "both" else torch.ones(())
            if weigh == "scale":
                with poutine.scale(scale=0.5 + z):
                    pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)
            else:
                with poutine.mask(mask=(z == 1) & (o > 0)):
                    pyro.sample("x", dist.Normal(2.0, 1.0), obs=X)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.6]))))

    assert agrees(model, guide).path == "enumerated"
    assert agrees(model, guide, compile="graph").path == "enumerated"


def test_a_mask_outside_a_plate_that_reads_an_enumerated_draw_inside():
    """Elements go jointly: by their own dims they would be taken in step."""

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        with poutine.mask(mask=z.sum(-1, keepdim=True) > 1):
            pyro.sample("x", dist.Normal(2.0, 1.0), obs=X[0])

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.6]))))

    assert "jointly" in type(agrees(model, guide).way).__name__.lower()
    two_or_three = 3 * 0.3**2 * 0.7 + 0.3**3
    seen = float(dist.Normal(2.0, 1.0).log_prob(X[0]).exp())
    assert TraceELBO().loss(model, nothing) == pytest.approx(-math.log(1 + two_or_three * (seen - 1)), abs=1e-5)


def test_event_elements_under_a_mask_that_reads_one_of_them_are_no_sums_of_their_own():
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.full((10,), 0.4)).to_event(1))
        with poutine.mask(mask=z[..., 0] == 1):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.linspace(-1, 1, 10))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.linspace(-1, 1, 10))).to_event(1))

    agrees(model, guide)

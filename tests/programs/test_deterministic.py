"""`pyro.deterministic` records a value and has no term: by default all dims of the value are its event."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO, to_inference_data

DATA = torch.tensor([0.3, -1.0, 0.8])


def pair(recorded):
    """A model and a guide whose intermediate values are recorded or not, in the plate and outside of it."""
    logits = torch.nn.Parameter(torch.tensor([0.4, -0.2, 0.1]))
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.0]))

    def record(name, value):
        return pyro.deterministic(name, value) if recorded else value

    def model(x):
        shift = record("shift", weight[0] * 2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            mean = record("mean", z * weight[1] + shift)
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(record("sum", mean + k), 1.0), obs=x)

    def guide(x):
        record("doubled", 2 * logits)
        with pyro.plate("data", len(x)):
            record("opposite", 1 - pyro.sample("z", dist.Bernoulli(logits=logits)))

    return model, guide, [logits, weight]


def step(elbo, recorded):
    model, guide, parameters = pair(recorded)
    pyro.clear_param_store()
    elbo.loss(model, guide, DATA)
    pyro.set_rng_seed(3)
    loss = elbo.loss_and_grads(model, guide, DATA)
    return loss, torch.cat([p.grad for p in parameters])


@pytest.mark.parametrize(
    "name", ["enumerate", "reinforce", "nvil", "rloo", "disarm", "rebar", "muprop", "indecater", "gumbel_softmax"]
)
def test_a_step_is_the_same_with_and_without_it(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, gradient = step(TraceELBO(name, num_particles=2), True)
    expected, expected_gradient = step(TraceELBO(name, num_particles=2), False)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_a_bounds_step_is_the_same_with_and_without_it():
    loss, gradient = step(TraceIWELBO("vimco", num_particles=3), True)
    expected, expected_gradient = step(TraceIWELBO("vimco", num_particles=3), False)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_posterior_and_inference_data():
    model, guide, _ = pair(True)
    found = []
    for each in (model, guide), pair(False)[:2]:
        pyro.set_rng_seed(3)
        found.append(DiscretePosterior(*each).marginals(DATA))
    for site in ("z", "k"):
        assert torch.allclose(found[0][site].probs, found[1][site].probs)
    data = to_inference_data(model, guide, DATA, num_samples=6)
    assert data.posterior["z"].shape == (1, 6, 3)
    assert data.posterior_predictive["x"].shape == (1, 6, 3)

"""`compute_marginals` and `sample_posterior` of the ELBO classes, against Pyro's and Bayes' rule."""

from __future__ import annotations

from collections import OrderedDict

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_discrete import TraceELBO, TraceExpectation, TraceIWELBO

X, PRIOR = torch.tensor([0.8, -0.5, 3.1]), torch.tensor([0.2, 0.5, 0.3])


def model(x, offset=0.0):
    offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(PRIOR))
        y = pyro.sample("y", dist.Bernoulli(0.2 + 0.3 * z))
        pyro.sample("x", dist.Normal(2.0 * z - y + offset, 1.0), obs=x)
    return z, y


def guide(x, offset=0.0):
    pyro.sample("offset", dist.Delta(torch.tensor(offset)))


def silent(x, offset=0.0):
    model(x)


ELBOS = [
    TraceELBO,
    lambda: TraceELBO("enumerate", max_plate_nesting=1),
    lambda: TraceIWELBO(num_particles=2),
    TraceExpectation,
]


@pytest.mark.parametrize("make", ELBOS)
@pytest.mark.parametrize("program", [model, silent])
def test_as_pyros(make, program):
    """Marginals as Pyro's; the frequencies of 200 draws, 20 of each datum at once, at 5.5 standard errors."""
    x = X.repeat(20)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(config_enumerate(model), guide, x, offset=0.3)
    elbo = make()
    found = elbo.compute_marginals(program, guide, x, offset=0.3)
    assert isinstance(found, OrderedDict)
    assert list(found) == list(pyros) == ["z", "y"]
    for name, marginal in pyros.items():
        assert type(found[name]) is type(marginal)
        assert found[name].batch_shape == marginal.batch_shape
        assert torch.allclose(found[name].probs.float(), marginal.probs, atol=1e-5)
    pyro.set_rng_seed(0)
    draws = [elbo.sample_posterior(program, guide, x, offset=0.3) for _ in range(10)]
    z = torch.cat([(d["z"] if program is silent else d[0]).reshape(20, 3) for d in draws])
    frequency = torch.nn.functional.one_hot(z, 3).float().mean(0)
    assert torch.allclose(frequency, pyros["z"].probs[:3], atol=5.5 * 0.5 / 200**0.5)


def test_a_trace_around_has_the_sites():
    with poutine.trace() as tr:
        z, y = TraceELBO().sample_posterior(model, guide, X)
    assert torch.equal(tr.trace.nodes["z"]["value"], z)
    assert torch.equal(tr.trace.nodes["y"]["value"], y)
    assert tr.trace.nodes["offset"]["value"] == 0


def test_with_subsamples():
    x = torch.arange(10.0)

    def subsampled():
        with pyro.plate("data", 10, subsample_size=3) as index:
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(20 * z, 1.0), obs=x[index])
        return index, z

    pyro.set_rng_seed(0)
    seen = set()
    for _ in range(5):
        index, z = TraceELBO().sample_posterior(subsampled, lambda: None)
        assert torch.equal(z, (x[index] > 10).float())
        seen.add(tuple(index.tolist()))
    assert len(seen) > 1

"""Programs that draw numbers by themselves, beside their sites: the runs of one sum are runs of one program."""

import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import DiscretePosterior, TraceELBO
from pyro_discrete.errors import EnumerationError, SiteMatchError

X = torch.tensor([0.3, -1.2, 2.0])
SIZES = (1, 2, 3)
CHANCE, DRAWN = 0.3, 0.6
GENERATORS = {
    "Python's": lambda: random.randint(1, 3),
    "NumPy's": lambda: int(np.random.randint(1, 4)),  # noqa: NPY002 - the generator that is everybody's
    "torch's": lambda: int(torch.randint(1, 4, ())),
}


def joint(z, size):
    return math.log(CHANCE if z else 1 - CHANCE) + dist.Normal(float(z), 1.0).log_prob(X[:size]).sum().item()


def less_evidence(size):
    return -float(np.logaddexp(joint(0, size), joint(1, size)))


def negative_elbo(size):
    return -sum(q * (joint(z, size) - math.log(q)) for z, q in ((0, 1 - DRAWN), (1, DRAWN)))


def model_of(generator, reads):
    """A model whose data are as many as a generator says; `reads`: Python reads the draw, so that it takes no rows."""

    def model():
        size = GENERATORS[generator]()
        z = pyro.sample("z", dist.Bernoulli(CHANCE))
        if reads:
            z = torch.tensor(float(z))
        with pyro.plate("data", size):
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:size])

    return model


def nothing():
    pass


def guide():
    pyro.sample("z", dist.Bernoulli(DRAWN))


def seeded():
    pyro.set_rng_seed(0)


def among(found, right):
    right = list(right)
    return all(min(abs(one - other) for other in right) < 1e-4 for one in found)


@pytest.mark.parametrize("spec", ["enumerate", "auto"])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_sum_over_sites_of_the_model_is_of_one_size_of_the_data(generator, reads, spec):
    """With a size for each value it was the log of a mixture, 2.34 where 1.02, 2.90 and 5.63 are right."""
    seeded()
    elbo, model = TraceELBO(spec), model_of(generator, reads)
    found = [float(elbo.differentiable_loss(model, nothing)) for _ in range(8)]
    assert among(found, map(less_evidence, SIZES))
    assert len({round(f, 3) for f in found}) > 1


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_sum_over_the_guides_values_is_of_one_size_of_the_data(generator, reads):
    seeded()
    elbo, model = TraceELBO("enumerate"), model_of(generator, reads)
    found = [float(elbo.differentiable_loss(model, guide)) for _ in range(8)]
    assert among(found, map(negative_elbo, SIZES))
    assert len({round(f, 3) for f in found}) > 1


def test_beside_a_continuous_draw_torchs_numbers_are_right_in_the_mean():
    """It is drawn by that generator: a run for each of the guide's values has draws of its own, of one law."""

    def beside():
        pyro.sample("c", dist.Normal(0.0, 1.0))
        guide()

    def model():
        pyro.sample("c", dist.Normal(0.0, 1.0))
        model_of("torch's", True)()

    seeded()
    elbo = TraceELBO("enumerate")
    with torch.no_grad():
        found = torch.tensor([float(elbo.loss(model, beside)) for _ in range(400)], dtype=torch.float64)
    right = sum(map(negative_elbo, SIZES)) / len(SIZES)
    assert abs(float(found.mean()) - right) < 5 * float(found.std()) / math.sqrt(len(found))


@pytest.mark.parametrize("seed", range(6))
def test_a_plate_of_one_element_may_have_several_in_the_next_run_of_the_same_data(seed):
    torch.manual_seed(seed)
    elbo, model = TraceELBO("enumerate"), model_of("torch's", False)
    found = [float(elbo.differentiable_loss(model, guide)) for _ in range(6)]
    assert among(found, map(negative_elbo, SIZES))


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_subsample_is_drawn_before_numbers_of_the_programs_own(generator):
    def model():
        with pyro.plate("rows", 3, subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=X[rows])
        model_of(generator, True)()

    seeded()
    elbo = TraceELBO("enumerate")
    found = [float(elbo.differentiable_loss(model, nothing)) for _ in range(12)]
    beside = [-1.5 * dist.Normal(0.0, 1.0).log_prob(X[list(rows)]).sum().item() for rows in ((0, 1), (0, 2), (1, 2))]
    assert among(found, [less_evidence(size) + more for size in SIZES for more in beside])
    assert len({round(f, 3) for f in found}) > 1


@pytest.mark.parametrize("of", ["differentiable_loss", "loss"])
def test_each_step_has_a_subsample_of_its_own(of):
    """Where a sum goes value by value, and no number beside the subsample's is drawn."""

    def model():
        with pyro.plate("rows", 3, subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=X[rows])
        z = pyro.sample("z", dist.Bernoulli(CHANCE))
        pyro.sample("x", dist.Normal(float(z), 1.0), obs=X[0])

    seeded()
    elbo = TraceELBO("enumerate")
    with torch.no_grad():
        found = {round(float(getattr(elbo, of)(model, nothing)), 3) for _ in range(24)}
    beside = [-1.5 * dist.Normal(0.0, 1.0).log_prob(X[list(rows)]).sum().item() for rows in ((0, 1), (0, 2), (1, 2))]
    assert found == {round(less_evidence(1) + more, 3) for more in beside}


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_posterior_is_that_of_one_size_of_the_data(generator, reads):
    seeded()
    right = [math.exp(joint(1, size) + less_evidence(size)) for size in SIZES]
    found = [float(DiscretePosterior(model_of(generator, reads), nothing).marginals()["z"].probs) for _ in range(6)]
    assert among(found, right)


def test_a_captured_step_is_of_one_size_of_the_data():
    seeded()
    elbo, model = TraceELBO("enumerate", compile="graph"), model_of("torch's", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [float(elbo.loss_and_grads(model, nothing)) for _ in range(6)]
    assert among(found, map(less_evidence, SIZES))


def test_a_delta_of_the_model_alone_is_said_to_be_computed():
    def model():
        z = pyro.sample("z", dist.Bernoulli(CHANCE))
        loc = pyro.sample("loc", dist.Delta(2 * z))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=X[0])

    with pytest.raises(SiteMatchError, match=r"Write pyro.deterministic\('loc', value\)"):
        TraceELBO("enumerate").loss(model, guide)


def test_elements_with_too_many_joint_values_are_named_in_a_sentence():
    def model():
        size = 19 + int(pyro.sample("n", dist.Bernoulli(0.5)))
        with pyro.plate("bits", size):
            w = pyro.sample("w", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=X[0])

    with pytest.raises(EnumerationError, match="The elements of site 'w' have 2 values each"):
        TraceELBO("enumerate").loss(model, nothing)

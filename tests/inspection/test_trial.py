"""Programs over a leading dim of rows: run at once where they can be, one by one where not, refused where wrong."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.errors import SiteShapeError
from pyro_discrete.testing import exact_gradient, exact_loss
from tests.support.pairs import DATA, gradients

WEIGHT = torch.tensor([0.1, 0.5, 2.0])


def guide():
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))


def mixes_rows_into_categories():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Categorical(logits=z * WEIGHT), obs=torch.tensor(1))


def test_rows_that_pass_for_categories_are_run_one_by_one_where_pyro_is_silently_wrong():
    right = float(exact_loss(mixes_rows_into_categories, guide))
    wrong = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=0)
    assert wrong.loss(mixes_rows_into_categories, guide) > 0  # no complaint
    elbo = TraceELBO("reinforce", num_particles=3)
    with pytest.warns(UserWarning, match="cannot take a leading dim of 3 rows"):
        elbo.loss_and_grads(mixes_rows_into_categories, guide)
    mean = sum(elbo.loss_and_grads(mixes_rows_into_categories, guide) for _ in range(400)) / 400
    assert mean == pytest.approx(right, abs=0.1)


def test_sums_over_rows_are_run_one_by_one():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.mean(), 1.0), obs=torch.tensor(0.3))

    elbo = TraceELBO("rloo", num_particles=4)
    with pytest.warns(UserWarning, match="at site 'x' a row's log-probability changes"):
        elbo.loss_and_grads(model, guide)
    assert elbo.plan.path == "sequential"


def test_rows_in_an_event_dim_are_run_one_by_one():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z * torch.ones(1), 1.0).to_event(1), obs=torch.tensor([0.3]))

    elbo = TraceELBO("rloo", num_particles=4)
    with pytest.warns(UserWarning, match=r"site 'x' mixes rows into another dim: with \d rows its batch shape is"):
        elbo.loss_and_grads(model, guide)
    assert elbo.plan.path == "sequential"


def test_view_falls_back_to_one_by_one_with_one_warning_and_the_same_answer():
    def flat(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z.view(len(x), -1).sum(1), 1.0), obs=x)

    def flat_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2]))).to_event(1))

    elbo = TraceELBO("rloo", num_particles=8)
    with pytest.warns(UserWarning, match="cannot take a leading dim of 8 rows"):
        elbo.loss(flat, flat_guide, DATA)
    assert elbo.plan.path == "sequential"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            elbo.loss_and_grads(flat, flat_guide, DATA)
    exact = exact_gradient(flat, flat_guide, DATA)["a"]
    assert torch.allclose(gradients()["a"] / 300, exact.to(torch.float32), atol=0.06)


def test_rows_do_not_widen_a_program_of_one_row():
    shapes = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            shapes.append(tuple(z.shape))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.0))))

    elbo = TraceELBO("reinforce")
    elbo.loss_and_grads(model, plain, DATA)
    shapes.clear()
    elbo.loss_and_grads(model, plain, DATA)
    assert shapes == [(3,)]


def test_guide_and_model_run_once_a_step_whatever_the_rows():
    calls = {"model": 0, "guide": 0}

    def model(x):
        calls["model"] += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def counted(x):
        calls["guide"] += 1
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.0))))

    for estimator in ({"z": "enumerate", "*": "rloo"}, "rloo", "nvil", "gumbel_softmax"):
        elbo = TraceELBO(estimator, num_particles=4)
        elbo.loss_and_grads(model, counted, DATA)
        calls.update(model=0, guide=0)
        elbo.loss_and_grads(model, counted, DATA)
        assert calls == {"model": 1, "guide": 1}


def test_programs_with_noise_of_their_own_are_not_taken_for_mixing_rows():
    dropout = torch.nn.Dropout(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z + dropout(torch.ones(40)).mean(), 1.0), obs=x)

    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.4))

    elbo = TraceELBO("rloo", num_particles=4)
    elbo.loss(model, plain, DATA)
    assert elbo.plan.path == "vectorised"


@pytest.mark.parametrize("estimator", ["auto", "rloo"])
def test_events_of_other_shapes_are_refused_though_they_broadcast(estimator):
    """A value of the guide's shape would be scored several times."""

    def program(*shape):
        return lambda: pyro.sample("x", dist.Normal(torch.zeros(shape), 1.0).to_event(2))

    for in_model, in_guide in (((1, 2), (2, 1)), ((2, 2), (2, 1)), ((3, 1), (1, 1))):
        with pytest.raises(SiteShapeError, match=r"'x' has .*event shape"):
            TraceELBO(estimator, num_particles=2).loss(program(*in_model), program(*in_guide))

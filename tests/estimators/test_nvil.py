"""NVIL's parts: what its network reads, when it reads its averages, who trains it."""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_discrete import NVIL, TraceELBO
from pyro_discrete.control_variates import RunningMoments, leave_one_out
from pyro_discrete.estimators import Draw
from tests.support.pairs import DATA, gradients, layers, layers_guide, mixture, mixture_guide


def test_running_moments_are_unbiased_for_their_start():
    moments = RunningMoments(decay=0.9)
    assert moments.mean.item() == 0
    for _ in range(3):
        moments.update(torch.tensor([1.0, 3.0]))
        assert moments.mean.item() == pytest.approx(2.0)
        assert moments.deviation.item() == pytest.approx(1.0)


def test_leave_one_out_of_one_particle_is_zero():
    assert leave_one_out(torch.tensor([[5.0, 7.0]])).tolist() == [[0.0, 0.0]]


def test_averages_are_read_before_they_are_updated():
    estimator = NVIL(network=False, variance_normalisation=False)
    logit = torch.zeros((), requires_grad=True)
    for cost, baseline in ((3.0, 0.0), (5.0, 3.0)):
        surrogate = estimator.surrogate(Draw(torch.ones(1, 1), log_q=logit.reshape(1)), torch.full((1, 1), cost))
        (gradient,) = torch.autograd.grad(surrogate.loss.sum(), logit)
        assert gradient.item() == pytest.approx(cost - baseline)


def test_costs_are_freed_of_the_subsampling_scale():
    """A million data behind a batch of two: the averages stay of the order of one datum's cost."""

    def model(x):
        with pyro.plate("data", 2_000_000, subsample=torch.tensor([3, 4])):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2_000_000, subsample=torch.tensor([3, 4])):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    elbo = TraceELBO("nvil")
    loss = elbo.loss_and_grads(model, guide, DATA[:2])
    assert loss > 1e5
    assert elbo.estimators["z"].moments.mean.abs() < 10
    assert gradients()["a"].abs() > 100


def reads(model, guide, *args, estimator="nvil"):
    elbo = TraceELBO(estimator)
    elbo.loss(model, guide, *args)
    return {name: e.network[0].in_features if e.network else 0 for name, e in elbo.estimators.items()}


def test_network_reads_the_data_of_the_trace():
    assert reads(layers, layers_guide, DATA) == {"z1": 1, "z2": 1}


def test_network_does_not_read_what_depends_on_draws():
    """`pyro.deterministic`, `pyro.factor` and `obs=g(z)` are observed but depend on z: a biased baseline."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("penalty", -z)
            pyro.sample("noisy", dist.Normal(0.0, 1.0), obs=z.clone())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    elbo = TraceELBO("nvil")
    elbo.loss(model, mixture_guide, DATA)
    assert list(elbo.plan.observed) == ["x"]

    def branching(x):
        model(x)
        if torch.rand(()).item() < 0:
            raise RuntimeError

    def control_flow(x):
        z = pyro.sample("w", dist.Bernoulli(0.5))
        if z.item() > 0.5:
            pass
        branching(x)

    def control_guide(x):
        pyro.sample("w", dist.Bernoulli(0.5))
        mixture_guide(x)

    elbo = TraceELBO("nvil")
    elbo.loss(control_flow, control_guide, DATA)
    assert list(elbo.plan.observed) == ["x"]


def test_global_site_reads_a_pooled_vector_and_local_ones_their_own():
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, context):
            seen[tuple(context.shape)] = context
            return context.sum(-1) * 0

    def model(x):
        g = pyro.sample("g", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with pyro.plate("words", 2, dim=-1):
                pyro.sample(
                    "x", dist.Normal(z + g, 1.0).expand([len(x), 2]), obs=x.unsqueeze(-1) + torch.tensor([0.0, 2.0])
                )

    def guide(x):
        pyro.sample("g", dist.Bernoulli(logits=pyro.param("g_logit", torch.tensor(0.2))))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    TraceELBO(NVIL(network=Spy())).loss_and_grads(model, guide, DATA)
    assert torch.allclose(seen[1, 1, 1, 1].flatten(), (DATA + 1).mean().reshape(1))
    assert torch.allclose(seen[1, 3, 1, 1].flatten(), DATA + 1)


def test_ragged_batches_keep_the_input_size():
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=TraceELBO("nvil", num_particles=2))
    for size in (3, 1, 2):
        svi.step(DATA[:size])


@pytest.mark.parametrize("method", ["nvil", "auto"])
def test_data_of_changing_width_are_no_error(method):
    """The network reads all data together, and may meet another size in any call: unbiased all the same."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z.mean(-1, keepdim=True) + 0 * x, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    elbo = TraceELBO(method)
    assert math.isfinite(elbo.loss_and_grads(model, guide, DATA))
    for size in (2, 3, 1, 2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert math.isfinite(elbo.loss(model, guide, DATA[:size]))
            assert math.isfinite(elbo.loss_and_grads(model, guide, DATA[:size]))
        assert size == 3 or any("features" in str(warning.message) for warning in seen)


def test_own_network_input_and_learning_rate():
    network = torch.nn.Linear(2, 1)
    estimator = NVIL(network=network, input=lambda x: torch.stack([x, x**2], -1), learning_rate=0.05)
    elbo = TraceELBO(estimator)
    weight = network.weight.clone()
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.0}), loss=elbo)
    for _ in range(5):
        svi.step(DATA)
    own = elbo.estimators["z"].network
    assert not torch.equal(own.weight, weight)  # the site's copy was trained
    assert torch.equal(network.weight, weight)  # the user's own was not touched
    assert not any(name.startswith("estimators") for name in pyro.get_param_store())
    assert own.weight.grad is None
    assert reads(mixture, mixture_guide, DATA, estimator=NVIL(input="x")) == {"z": 1}


def test_default_network_is_trained_by_the_callers_optimiser():
    elbo = TraceELBO("nvil")
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam(lambda name: {"lr": 0.0 if name == "logit" else 0.05}), loss=elbo)
    for _ in range(400):
        svi.step(DATA)
    assert pyro.param("logit").item() == pytest.approx(0.4)
    predicted = elbo.estimators["z"].network(DATA.unsqueeze(-1)).squeeze(-1)
    # costs differ between data, and the network has learned how: x = -0.7 is the one best explained by z = 0
    q = torch.sigmoid(0.4 + 0.5 * DATA)
    means = torch.zeros(3)
    for z, weight in ((torch.zeros(3), 1 - q), (torch.ones(3), q)):
        log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(DATA)
        means += weight * (dist.Bernoulli(q).log_prob(z) - log_p)
    assert torch.corrcoef(torch.stack([predicted, means]))[0, 1] > 0.9


def test_each_part_lowers_the_variance():
    """Constant, then network, against none: the ordering of the paper's ablation."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(4)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(4))).to_event(1))

    x = torch.tensor([-6.0, 0.0, 2.0, 9.0])
    spread = {}
    for label, parts in {"none": (False, False), "constant": (True, False), "both": (True, True)}.items():
        elbo = TraceELBO(NVIL(*parts, variance_normalisation=False, learning_rate=0.02))
        torch.manual_seed(0)
        found = []
        for step in range(1200):
            elbo.loss_and_grads(model, guide, x)
            if step >= 800:
                found.append(gradients()["a"])
            else:
                gradients()
        spread[label] = torch.stack(found).var(0).sum().item()
    assert spread["both"] < 0.7 * spread["constant"] < 0.7 * spread["none"]


def test_training_leaves_a_loaded_state_as_it_is():
    """Of the estimator alone, and of an ELBO, before its sites are known and after."""

    def trained(elbo):
        torch.manual_seed(0)
        for _ in range(3):
            elbo.loss_and_grads(mixture, mixture_guide, DATA)
        return elbo

    def unchanged(state, before):
        assert state.keys() == before.keys()
        for key, value in before.items():
            if not key.endswith("_extra_state"):
                assert torch.equal(state[key], value), key
        now, then = (each["estimators.z._extra_state"]["optimiser"]["state"] for each in (state, before))
        assert now.keys() == then.keys()
        assert len(then) == 4
        assert all(torch.equal(now[p][kept], then[p][kept]) for p in then for kept in then[p])

    def new():
        return TraceELBO(NVIL(hidden=3, learning_rate=0.1))

    state = copy.deepcopy(trained(new()).state_dict())
    before = copy.deepcopy(state)
    elbo = new()
    elbo.load_state_dict(state)
    trained(elbo)
    unchanged(state, before)
    elbo.load_state_dict(state)
    trained(elbo)
    unchanged(state, before)


def test_a_state_that_waits_is_the_one_that_was_loaded():
    """The ELBO that it came from is trained on before the site that it waits for is met."""
    first, second, third = (TraceELBO(NVIL(hidden=3, learning_rate=0.1)) for _ in range(3))
    torch.manual_seed(0)
    first.loss_and_grads(mixture, mixture_guide, DATA)
    copied = copy.deepcopy(first.state_dict())
    second.load_state_dict(first.state_dict())
    third.load_state_dict(copied)
    for _ in range(3):
        first.loss_and_grads(mixture, mixture_guide, DATA)
    for elbo in (second, third):
        elbo.loss(mixture, mixture_guide, DATA)
    weight, expected = (elbo.estimators["z"].network[0].weight for elbo in (second, third))
    assert torch.equal(weight, expected)
    assert not torch.equal(weight, first.estimators["z"].network[0].weight)

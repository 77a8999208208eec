"""Programs at the edge of what the engine takes: each was once answered wrongly, or not at all."""

import gc
import math
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import NVIL, GumbelSoftmax, TraceELBO
from pyro_discrete.errors import NonFiniteError
from pyro_discrete.garbage import collecting_later
from pyro_discrete.planning.plan import Jointly, OneByOne
from pyro_discrete.testing import exact_gradient, exact_loss
from tests.support.pairs import DATA, gradients, layers, mixture, mixture_guide

SQUARE = torch.tensor([[0.5, -1.0, 2.0], [0.3, 0.2, -0.7], [1.5, 0.1, 0.4]])


def one_hot_guide(x):
    pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.5]))))


def matrix_times_one_hot(x):
    z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
    pyro.sample("x", dist.Normal(SQUARE @ z, 1.0).to_event(1), obs=x)


def index_of_columns(x):
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    pyro.sample("x", dist.Normal(SQUARE[:, z], 1.0).to_event(1), obs=x)


def index_guide(x):
    pyro.sample("z", dist.Categorical(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.5]))))


def all_bits(x):
    z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)).to_event(1))
    pyro.sample("x", dist.Normal(2.0 if (z > 0).all() else -1.0, 1.0), obs=x[0])


def factor_if_all(x):
    z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)).to_event(1))
    if (z > 0).all():
        pyro.factor("f", torch.tensor(3.0))


def bits_guide(x):
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.5]))).to_event(1))


PAIRS = [
    (matrix_times_one_hot, one_hot_guide),
    (index_of_columns, index_guide),
    (all_bits, bits_guide),
    (factor_if_all, bits_guide),
]


@pytest.mark.parametrize(("model", "guide"), PAIRS, ids=lambda f: f.__name__)
def test_programs_that_mix_dims_on_the_left_are_enumerated_one_by_one(model, guide):
    elbo = TraceELBO("enumerate")
    loss = elbo.loss_and_grads(model, guide, DATA)
    assert isinstance(elbo.plan.way, OneByOne)
    assert loss == pytest.approx(float(exact_loss(model, guide, DATA)), abs=1e-5)
    exact = exact_gradient(model, guide, DATA)["a"]
    assert torch.allclose(gradients()["a"], exact.to(torch.float32), atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("model", "guide"), PAIRS, ids=lambda f: f.__name__)
def test_programs_that_mix_dims_on_the_left_are_sampled_one_by_one(model, guide, seed):
    pyro.set_rng_seed(seed)
    elbo = TraceELBO("rloo", num_particles=4)
    with pytest.warns(UserWarning, match="cannot take a leading dim"):
        elbo.loss(model, guide, DATA)
    assert elbo.plan.path == "sequential"


def test_joint_sums_draw_a_new_subsample_every_step():
    seen = set()

    def model(x):
        plate = pyro.plate("data", 6, subsample_size=2)
        with plate as i:
            z = pyro.sample("z", dist.Bernoulli(0.3))
        h = pyro.sample("h", dist.Bernoulli(0.4))
        with plate:
            pyro.sample("x", dist.Normal(z + h, 1.0), obs=x[i])

    def guide(x):
        a = pyro.param("a", torch.tensor(0.4))
        with pyro.plate("data", 6, subsample_size=2) as i:
            seen.add(tuple(i.tolist()))
            z = pyro.sample("z", dist.Bernoulli(logits=a + x[i]))
        pyro.sample("h", dist.Bernoulli(logits=z.sum(-1, keepdim=True) - a))

    elbo, x = TraceELBO("enumerate"), torch.linspace(-1, 1, 6)
    elbo.loss(model, guide, x)
    assert isinstance(elbo.plan.way, Jointly)
    seen.clear()
    losses = {elbo.loss(model, guide, x) for _ in range(12)}
    assert len(seen) > 3
    assert len(losses) > 3


@pytest.mark.parametrize("learning_rate", [None, 0.01])
def test_a_step_that_fails_teaches_the_estimator_nothing(learning_rate):
    elbo = TraceELBO(NVIL(learning_rate=learning_rate))
    elbo.loss_and_grads(mixture, mixture_guide, DATA)
    before = {k: v.clone() for k, v in elbo.state_dict().items() if torch.is_tensor(v)}
    with pytest.raises(NonFiniteError, match="site 'x' of the model"):
        elbo.loss_and_grads(mixture, mixture_guide, torch.tensor([0.1, 0.2, 1e30]))
    for name, value in elbo.state_dict().items():
        assert not torch.is_tensor(value) or torch.equal(value, before[name])
    assert math.isfinite(elbo.loss_and_grads(mixture, mixture_guide, DATA))


def test_nothing_is_learned_without_gradients():
    elbo = TraceELBO(NVIL(learning_rate=0.01))
    elbo.loss_and_grads(mixture, mixture_guide, DATA)
    before = {k: v.clone() for k, v in elbo.state_dict().items() if torch.is_tensor(v)}
    with torch.no_grad():
        assert elbo(mixture, mixture_guide)(DATA).isfinite()
        with pytest.warns(UserWarning, match="gradients off"):
            assert math.isfinite(elbo.loss_and_grads(mixture, mixture_guide, DATA))
    for name, value in elbo.state_dict().items():
        assert not torch.is_tensor(value) or torch.equal(value, before[name])


@pytest.mark.parametrize("estimator", ["enumerate", "rloo", "nvil"])
def test_handlers_around_the_call_are_in_force(estimator):
    def model(n):
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * z, 1.0))

    def guide(n):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4)) + 0.5 * DATA))

    elbo = TraceELBO(estimator, num_particles=2)
    with poutine.condition(data={"x": DATA}):
        elbo.loss_and_grads(model, guide, 3)
    assert gradients()["logit"].isfinite()


def test_baseline_input_keeps_its_size_when_sites_come_and_go():
    def model(x):
        for i in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{i}", dist.Bernoulli(0.3))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.markov(range(len(x))):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))

    elbo, x = TraceELBO("nvil"), torch.randn(6)
    for length in (4, 3, 4):
        assert math.isfinite(elbo.loss_and_grads(model, guide, x[:length]))
    with pytest.warns(UserWarning, match="6 features now"):
        elbo.loss_and_grads(lambda x: model(x), guide, x)


def test_lengths_that_change_stay_vectorised():
    def model(x):
        for i in range(len(x)):
            z = pyro.sample(f"z{i}", dist.Bernoulli(0.3))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in range(len(x)):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))

    elbo, x = TraceELBO("rloo", num_particles=4), torch.randn(6)
    for length in (2, 4, 3, 4):
        elbo.loss_and_grads(model, guide, x[:length])
        assert elbo.plan.path == "vectorised"


def test_more_plates_at_a_later_call():
    def model(x, nested):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            if nested:
                with pyro.plate("more", 2, dim=-2):
                    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(2, len(x)))

    def guide(x, nested):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))

    elbo = TraceELBO("rloo", num_particles=3)
    assert math.isfinite(elbo.loss_and_grads(model, guide, DATA, False))
    assert math.isfinite(elbo.loss_and_grads(model, guide, DATA, True))


def test_a_sites_own_temperature_may_change_from_step_to_step():
    settings = {"temperature": 5.0}

    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.4))
        estimator = GumbelSoftmax(temperature=settings["temperature"])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit + x), infer={"estimator": estimator})

    elbo = TraceELBO(num_particles=4000)
    exact = float(exact_loss(mixture, guide, DATA))
    far = abs(elbo.loss_and_grads(mixture, guide, DATA) - exact)
    settings["temperature"] = 0.05
    assert abs(elbo.loss_and_grads(mixture, guide, DATA) - exact) < 0.2 * far


def test_a_site_that_nobody_named_need_not_be_enumerable():
    def model(x):
        z1 = pyro.sample("z1", dist.Bernoulli(0.4))
        z2 = pyro.sample("z2", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z1", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))
        pyro.sample("z2", dist.Poisson(1.5))

    elbo = TraceELBO({"z1": "enumerate"})
    elbo.loss_and_grads(model, guide, DATA)
    assert {name: each.name for name, each in elbo.plan.estimators.items()} == {"z1": "enumerate", "z2": "nvil"}


@pytest.mark.parametrize("estimator", [{"z": "enumerate"}, {"*": "enumerate"}, {"*": "auto"}, lambda site: "enumerate"])
def test_sites_of_the_model_alone_can_be_named(estimator):
    elbo = TraceELBO(estimator)
    assert elbo.loss(mixture, lambda x: None, DATA) == pytest.approx(
        -sum(
            math.log(0.3 * math.exp(-0.5 * (x - 2) ** 2) + 0.7 * math.exp(-0.5 * x**2)) - 0.5 * math.log(2 * math.pi)
            for x in DATA.tolist()
        ),
        abs=1e-5,
    )


def test_a_parameter_that_appears_later_is_checked_too():
    def guide(x, late):
        logit = pyro.param("logit", torch.tensor(0.4))
        if late:
            logit = logit + pyro.param("late", torch.tensor(0.0)).abs().sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit + x))

    elbo = TraceELBO("reinforce")
    elbo.loss_and_grads(lambda x, late: mixture(x), guide, DATA, False)
    with pytest.raises(NonFiniteError, match="site 'z' of the guide"):
        elbo.loss_and_grads(lambda x, late: mixture(x), guide, DATA, True)


def test_enumerating_names_the_site_of_an_infinite_loss():
    def model(x):
        mixture(x)
        pyro.factor("penalty", torch.tensor(-math.inf))

    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="'penalty' of the model"):
        TraceELBO("enumerate").loss_and_grads(model, mixture_guide, DATA)


def test_impossible_categories_are_left_out_of_a_local_expectation():
    def model(x):
        pyro.sample("w", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
            pyro.sample("x", dist.Normal(z.to(x), 1.0), obs=x)

    def guide(x):
        logits = torch.cat([pyro.param("a", torch.zeros(2)), torch.tensor([-math.inf])])
        pyro.sample("w", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    elbo = TraceELBO({"z": "enumerate", "w": "rloo"}, num_particles=2)
    elbo.loss_and_grads(model, guide, DATA)
    assert gradients()["a"].isfinite().all()


def test_layers_in_float64_under_a_float32_default():
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.2, -0.3], 0.6))

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=a + x.unsqueeze(-1)).to_event(1))
            pyro.sample("z2", dist.Bernoulli(logits=b * z1.sum(-1)))

    for estimator in ("rloo", "nvil", "gumbel_softmax", "enumerate"):
        assert math.isfinite(TraceELBO(estimator, num_particles=2).loss_and_grads(layers, guide, DATA.double()))
    assert a.grad.dtype == torch.float64


@pytest.mark.parametrize("way", ["loss", "loss_and_grads", "differentiable_loss", "gradients"])
@pytest.mark.parametrize("collecting", [True, False])
def test_cycles_are_collected_before_and_after_a_call_and_not_in_it(way, collecting):
    within = []

    def model(x, wrong=False):
        within.append(gc.isenabled())
        if wrong:
            raise ValueError("not today")
        pyro.sample("x", dist.Normal(pyro.param("a", torch.tensor(0.3)), 1.0).expand([len(x)]).to_event(1), obs=x)

    call = getattr(TraceELBO(), way)
    try:
        if not collecting:
            gc.disable()
        call(model, lambda x, **more: None, DATA)
        assert gc.isenabled() is collecting
        with pytest.raises(ValueError, match="not today"):
            call(model, lambda x, **more: None, DATA, wrong=True)
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
    assert not any(within)


def test_cycles_are_collected_after_calls_in_several_threads(monkeypatch):
    """One thread ends its call while another is between looking whether cycles are collected and having them not be."""
    looked, is_enabled = threading.Event(), gc.isenabled

    def slowly():
        found = is_enabled()
        looked.set()
        time.sleep(0.2)
        return found

    def another():
        with collecting_later():
            pass

    with collecting_later():
        monkeypatch.setattr(gc, "isenabled", slowly)
        thread = threading.Thread(target=another)
        thread.start()
        looked.wait()
    thread.join()
    try:
        assert is_enabled()
    finally:
        gc.enable()

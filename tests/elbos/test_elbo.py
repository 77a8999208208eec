"""The ELBO as users meet it: as SVI's loss, as a module, saved and loaded."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.infer.autoguide import AutoGuideList, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_discrete import Family, TraceELBO, available_estimators
from tests.support.pairs import DATA, layers, layers_guide, mixture, mixture_guide

SERVING = [
    name
    for name, info in available_estimators().items()
    if Family.BERNOULLI in info.families and not info.cls.importance_weighted
]
ONE_HARD_ROW = [("straight_through_gumbel_softmax", 2), ("reinforce", 1), ("nvil", 1), ("rloo", 3), ("reinforce", 5)]


@pytest.mark.parametrize(("estimator", "particles"), ONE_HARD_ROW)
def test_loss_agrees_with_loss_and_grads_under_one_seed(estimator, particles):
    elbo = TraceELBO(estimator, num_particles=particles)
    values = []
    for call in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        torch.manual_seed(3)
        values.append(torch.as_tensor(call(layers, layers_guide, DATA)).item())
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert values[0] == pytest.approx(values[2], abs=1e-5)


def test_first_call_leaves_the_random_state_to_the_program():
    torch.manual_seed(0)
    fresh = TraceELBO("rloo", num_particles=3).loss_and_grads(mixture, mixture_guide, DATA)
    elbo = TraceELBO("rloo", num_particles=3)
    elbo.loss(mixture, mixture_guide, DATA)
    torch.manual_seed(0)
    assert elbo.loss_and_grads(mixture, mixture_guide, DATA) == fresh


@pytest.mark.parametrize("name", ["auto", *SERVING])
def test_svi_lowers_the_loss(name):
    pyro.set_rng_seed(0)
    elbo = TraceELBO(name, num_particles=4)
    exact = TraceELBO("enumerate")
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    before = exact.loss(mixture, mixture_guide, DATA)
    for _ in range(80):
        svi.step(DATA)
    assert exact.loss(mixture, mixture_guide, DATA) < before - 0.01
    assert isinstance(svi.evaluate_loss(DATA), float)


def test_it_is_an_elbo_and_a_module_without_a_forward_of_its_own():
    elbo = TraceELBO("nvil")
    assert isinstance(elbo, ELBO)
    assert isinstance(elbo, nn.Module)


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroParam(torch.tensor(1.5))
        self.bias = PyroModule[nn.Linear](1, 1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(self.weight * z + self.bias(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.logit = PyroParam(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logit + x))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("estimator", ["nvil", "rloo", "enumerate", "gumbel_softmax"])
def test_as_a_module_with_a_torch_optimiser(local, estimator):
    pyro.set_rng_seed(1)
    with pyro.settings.context(module_local_params=local):
        model, guide = Decoder(), Encoder()
        elbo = TraceELBO(estimator, num_particles=2)
        module = elbo(model, guide)
        module(DATA)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        before = TraceELBO("enumerate").loss(model, guide, DATA)
        for _ in range(60):
            optimiser.zero_grad()
            module(DATA).backward()
            optimiser.step()
        assert TraceELBO("enumerate").loss(model, guide, DATA) < before
        names = [name for name, _ in module.named_parameters()]
        assert ("elbo.estimators.z.network.0.weight" in names) == (estimator == "nvil")


def test_plain_modules_in_a_closure_get_a_gradient_without_any_pyro_param():
    encoder = nn.Linear(1, 1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x.unsqueeze(-1)).squeeze(-1)))

    TraceELBO("rloo", num_particles=8).loss_and_grads(mixture, guide, DATA)
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("estimator", ["rloo", "nvil", "enumerate"])
@pytest.mark.parametrize("discrete_first", [True, False])
def test_auto_guide_list_with_a_discrete_part(estimator, discrete_first):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(loc[..., 0] * z + loc[..., 1] * (1 - z), 0.5), obs=x)

    x = torch.tensor([2.1, 1.9, -2.0, -2.2])
    guide = AutoGuideList(model)

    def discrete(x):
        with guide.plates["data"]:
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.tensor([1.0, 1.0, -1.0, -1.0]))))

    parts = [discrete, AutoNormal(poutine.block(model, expose=["loc"]), init_scale=0.1)]
    for part in parts if discrete_first else parts[::-1]:
        guide.append(part)
    elbo = TraceELBO(estimator, num_particles=4)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    for _ in range(150):
        svi.step(x)
    probabilities = pyro.param("logits").sigmoid()
    assert bool((probabilities[:2] > 0.7).all())
    assert bool((probabilities[2:] < 0.3).all())
    assert guide.median(x)["loc"][0] > 1 > -1 > guide.median(x)["loc"][1]


def test_guide_that_runs_the_model_itself():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x)

    svi = SVI(model, AutoNormalMessenger(model), pyro.optim.Adam({"lr": 0.05}), loss=TraceELBO("rloo", num_particles=4))
    losses = [svi.step(DATA) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20]) - 4


def test_batches_of_changing_size_keep_one_plan():
    elbo = TraceELBO("nvil", num_particles=2)
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    svi.step(DATA)
    plan = elbo.plan
    for size in (2, 1, 3):
        svi.step(DATA[:size])
    assert elbo.plan is plan


def test_plan_prints_what_each_site_got():
    elbo = TraceELBO({"z1": "enumerate", "z2": "rloo"}, num_particles=2)
    with pytest.raises(ValueError, match="first call"):
        print(elbo.plan)
    elbo.loss(layers, layers_guide, DATA)
    text = str(elbo.plan)
    assert "z1    Bernoulli  enumerate  5     by name" in text
    assert text.splitlines()[-2] == "vectorised: 5 row(s) x 2 particle(s) a step"


def test_structure_that_changes_takes_the_sequential_path():
    def branching(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        loc = torch.tensor(-1.0)
        if z.item() > 0.5:
            loc = 2 * pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[0])

    def guide(x):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(()))))
        if z.item() > 0.5:
            pyro.sample("w", dist.Bernoulli(logits=pyro.param("b", torch.zeros(()))))

    elbo = TraceELBO("rloo", num_particles=6)
    with pytest.warns(UserWarning, match="cannot take a leading dim"):
        elbo.loss_and_grads(branching, guide, DATA)
    assert elbo.plan.path == "sequential"
    for _ in range(5):
        elbo.loss_and_grads(branching, guide, DATA)
    assert {site.name for site in elbo.plan.sites} == {"z", "w"}


def test_site_that_appears_later_is_planned_then():
    def model(x, extra):
        mixture(x)
        if extra:
            pyro.sample("w", dist.Bernoulli(0.2))

    def guide(x, extra):
        mixture_guide(x)
        if extra:
            pyro.sample("w", dist.Bernoulli(0.4))

    elbo = TraceELBO("rloo", num_particles=3)
    elbo.loss_and_grads(model, guide, DATA, False)
    elbo.loss_and_grads(model, guide, DATA, True)
    assert elbo.plan.path == "vectorised"
    assert {site.name for site in elbo.plan.sites} == {"z", "w"}


def test_warns_when_no_optimiser_trains_the_baseline():
    elbo = TraceELBO("nvil")
    for _ in range(49):
        elbo.loss_and_grads(mixture, mixture_guide, DATA)
    with pytest.warns(UserWarning, match="no optimiser has stepped"):
        elbo.loss_and_grads(mixture, mixture_guide, DATA)


def test_retain_graph_is_passed_on():
    elbo = TraceELBO("rloo", num_particles=2, retain_graph=True)
    assert elbo.loss_and_grads(mixture, mixture_guide, DATA) > 0

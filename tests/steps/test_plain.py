"""Steps in which each site is drawn once are those of their plans' own ways, on every program that has such steps."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.steps import plain
from pyro_discrete.testing.check import programs
from tests.support.pairs import DATA, gradients, layers, layers_guide, mixture, mixture_guide

PROGRAMS = {p.name: p for p in programs()}
STEPS = 3


def taken(program, estimator, particles, dtype=torch.float64):
    """Losses, gradients and the next random number of some steps, and whether they were plain."""
    found = []
    with program.running(dtype) as pair:
        elbo = TraceELBO(estimator, num_particles=particles)
        torch.manual_seed(1)
        for _ in range(STEPS):
            found.append(torch.tensor(elbo.loss_and_grads(pair.model, pair.guide, *pair.args)))
            for parameter in pair.parameters.values():
                found.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
                parameter.grad = None
        return [*found, torch.rand(3)], elbo.plan.met.plain


@pytest.mark.filterwarnings("ignore:This program cannot take a leading dim")
@pytest.mark.parametrize(("estimator", "particles"), [("rloo", 3), ("reinforce", 1), ("reinforce", 2), ("nvil", 2)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_are_those_of_the_plans_own_way(name, estimator, particles, monkeypatch):
    found, _ = taken(PROGRAMS[name], estimator, particles)
    monkeypatch.setattr(plain, "is_plain", lambda plan, objective: False)
    wanted, is_plain = taken(PROGRAMS[name], estimator, particles)
    assert is_plain is None
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:This program cannot take a leading dim")
@pytest.mark.parametrize("estimator", ["rloo", "nvil"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_parameters_are_met_in_the_order_of_the_plans_own_way(name, estimator, monkeypatch):
    orders = []
    for _ in range(2):
        with PROGRAMS[name].running() as pair:
            result = TraceELBO(estimator, num_particles=2).gradients(pair.model, pair.guide, *pair.args)
            names = {id(parameter): name for name, parameter in pair.parameters.items()}
            orders.append([names.get(id(p), tuple(p.shape)) for p in result.parameters])
        monkeypatch.setattr(plain, "is_plain", lambda plan, objective: False)
    assert orders[0] == orders[1]


@pytest.mark.filterwarnings("ignore:This program cannot take a leading dim")
def test_most_programs_have_such_steps():
    plainly = {name for name, program in PROGRAMS.items() if taken(program, "rloo", 2)[1]}
    assert {
        "two_layers",
        "mixed_chain",
        "nested_plates",
        "subsampled",
        "masked_latent",
        "continuous_upstream",
    } <= plainly
    assert plainly.isdisjoint(("summed_chain", "summed_under_a_bit"))


def test_a_run_with_something_else_is_made_again_from_where_it_began():
    place = torch.tensor(0)

    def model(x):
        mixture(x)
        if place > 0:
            pyro.sample("own", dist.Bernoulli(0.3))

    def losses():
        elbo = TraceELBO("rloo", num_particles=2)
        torch.manual_seed(0)
        found = []
        for number in (0, 0, 1, 1):
            place.fill_(number)
            found.append(elbo.loss_and_grads(model, mixture_guide, DATA))
        return [*found, torch.rand(2)], gradients(), elbo.plan.met.plain

    found, slopes, _ = losses()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "is_plain", lambda plan, objective: False)
        wanted, wanted_slopes, _ = losses()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slopes, wanted_slopes)


def test_another_distribution_at_a_site_is_seen():
    kind = ["bits"]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0) if kind == ["normal"] else dist.Bernoulli(0.5))

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0) if kind == ["normal"] else dist.Bernoulli(logits=loc.expand(len(x))))

    elbo = TraceELBO("rloo", num_particles=2)
    for each in ("bits", "normal", "bits"):
        kind[0] = each
        torch.manual_seed(0)
        found = elbo.loss_and_grads(model, guide, DATA), gradients()
        torch.manual_seed(0)
        wanted = TraceELBO("rloo", num_particles=2).loss_and_grads(model, guide, DATA), gradients()
        torch.testing.assert_close(found, wanted)


def test_data_that_depend_on_no_draw_count_once_for_each_particle():
    def model(x):
        layers(x)
        logits = pyro.param("own", torch.tensor([0.4, -0.2]))
        with pyro.plate("more", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=logits.expand(len(x), 2)).to_event(1), obs=torch.ones(len(x), 2))

    found = {}
    for particles in (2, 5):
        elbo = TraceELBO("rloo", num_particles=particles)
        elbo.loss_and_grads(model, layers_guide, DATA)
        assert elbo.plan.met.plain
        found[particles] = gradients()["own"]
    torch.testing.assert_close(found[2], found[5])
    torch.testing.assert_close(found[2], -len(DATA) * torch.sigmoid(-torch.tensor([0.4, -0.2])))

"""Sites of the model alone are summed out beside sites that any estimator samples.

The statistical tests here alarm falsely with a probability below 1e-5 together, under fixed seeds.
"""

from __future__ import annotations

import itertools
import math
import random
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import Enumerate, TraceELBO, TraceIWELBO
from pyro_discrete.elbos import engine
from pyro_discrete.errors import EnumerationError, SettingError, SiteMatchError
from pyro_discrete.planning.make_plan import make_plan
from pyro_discrete.steps import run as one_run
from pyro_discrete.sums import marginalisation
from pyro_discrete.sums import marginalisation as sums_one_by_one
from pyro_discrete.sums.enumerated_sites import BudgetError
from pyro_discrete.testing import Oracle, assert_contract, check_estimator, exact_gradient, exact_loss
from pyro_discrete.testing.small_programs import marginals as marginal_programs
from pyro_discrete.testing.small_programs.program import Program
from tests.support.forced import Forced, mean_gradient
from tests.support.pairs import DATA, gradients

PROGRAMS = [p for p in vars(marginal_programs).values() if isinstance(p, Program)]


def report(estimator, draws=1_600, programs=PROGRAMS):
    return check_estimator(estimator, programs=programs, draws=draws, dtypes=(torch.float64,), false_alarm=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["reinforce", "rloo", "disarm", "rebar", "gumbel_softmax"])
def test_sampled_and_summed_sites_side_by_side(name):
    found = report(name)
    print(found)
    assert_contract(found)
    assert not found.refused


def error_of(program, particles=4_000):
    """How far the gradient of so many particles is from the exact one, at most."""
    with program.running() as pair:
        TraceELBO("rloo", num_particles=particles).loss_and_grads(pair.model, pair.guide, *pair.args)
        exact = program.exact.gradients
        return max((p.grad - exact[name]).abs().max().item() for name, p in pair.parameters.items())


@pytest.mark.statistical
def test_a_term_before_the_sites_that_influence_it_is_caught(monkeypatch):
    """Planted: the marginal's place is that of its first member, so that some costs leave it out."""

    def too_early(trace, marginalise, batch_dims):
        made, members = marginalisation.collapsed(trace, marginalise, batch_dims)
        early = type(made)()
        for name in sorted(made.nodes, key=lambda name: not name.startswith("sum over")):
            early.add_node(name, **made.nodes[name])
        return early, {key: [] for key in members}  # nothing that is known of dependencies may put it right

    assert error_of(marginal_programs.summed_over_all_plates) < 0.03
    monkeypatch.setattr(one_run, "collapsed", too_early)
    assert error_of(marginal_programs.summed_over_all_plates) > 0.1


@pytest.mark.statistical
def test_a_scale_inside_the_logarithm_is_caught(monkeypatch):
    def scaled(component, **options):
        for factor in component.factors:
            dims = factor.value._pyro_dims
            factor.value = factor.value * factor.message["scale"]
            factor.value._pyro_dims = dims
            factor.message["scale"] = 1.0
        return contract(component, **options)

    contract = marginalisation.contract
    assert error_of(marginal_programs.summed_nested) < 0.03
    monkeypatch.setattr(marginalisation, "contract", scaled)
    assert error_of(marginal_programs.summed_nested) > 0.1


def mixed(x):
    """A bit that the guide draws and an integer that it does not, and data in one plate."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]))))
        z = pyro.sample("z", dist.Bernoulli(0.2 + 0.2 * y))
        pyro.sample("x", dist.Normal(y.to(x) - z, 0.7), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.5]))))


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_plan_says_what_is_summed_out_and_what_it_costs(vectorize):
    elbo = TraceELBO("rloo", num_particles=2, vectorize_particles=vectorize)
    elbo.loss_and_grads(mixed, guide, DATA)
    shown = str(elbo.plan)
    assert "y     Categorical  enumerate  -     in the model alone: marginalised" in shown
    assert "exact sums: largest table 9 elements" in shown
    assert [s.estimator for s in elbo.plan.sites] == ["rloo", "enumerate"]


def test_exact_where_the_guide_is_enumerated_too():
    loss, exact = exact_loss(mixed, guide, DATA), exact_gradient(mixed, guide, DATA)
    for spec in ("enumerate", {"z": "enumerate"}, "auto"):
        pyro.clear_param_store()
        assert TraceELBO(spec).loss_and_grads(mixed, guide, DATA) == pytest.approx(loss, abs=1e-5)
        for name, gradient in gradients().items():
            assert torch.allclose(gradient, exact[name].to(gradient), atol=1e-5)


@pytest.mark.parametrize("name", ["summed_over_all_plates", "summed_chain", "summed_nested"])
def test_enumerating_the_guide_leaves_nothing_to_chance(name):
    program = getattr(marginal_programs, name)
    with program.running() as pair:
        loss = TraceELBO("enumerate").loss_and_grads(pair.model, pair.guide, *pair.args)
        assert loss == pytest.approx(program.exact.loss, abs=1e-9)
        for key, parameter in pair.parameters.items():
            assert torch.allclose(parameter.grad, program.exact.gradients[key], atol=1e-9)


def test_a_site_of_the_model_alone_cannot_be_sampled():
    for spec in ({"y": "rloo"}, {"y": "disarm", "z": "rloo"}):
        with pytest.raises(SiteMatchError, match="'y', which is latent in the model but not drawn in the guide"):
            TraceELBO(spec, num_particles=2).loss(mixed, guide, DATA)
    TraceELBO({"*": "rloo"}, num_particles=2).loss(mixed, guide, DATA)


def test_a_site_that_appears_later_is_summed_out_too():
    def model(x, more):
        pyro.sample("z", dist.Bernoulli(0.3))
        if more:
            w = pyro.sample("w", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[0])

    def guide(x, more):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    elbo = TraceELBO("reinforce", num_particles=1)
    draw = {}
    for more in (False, True, True):
        torch.manual_seed(1)
        draw[more] = elbo.loss(model, guide, DATA, more)
    mixture = 0.4 * dist.Normal(1.0, 1.0).log_prob(DATA[0]).exp() + 0.6 * dist.Normal(0.0, 1.0).log_prob(DATA[0]).exp()
    assert draw[True] - draw[False] == pytest.approx(-mixture.log().item(), abs=1e-5)


def refused(match, model, guide=guide, estimator="rloo"):
    with pytest.raises(EnumerationError, match=match):
        TraceELBO(estimator, num_particles=2).loss_and_grads(model, guide, DATA)


def test_what_cannot_be_summed_is_refused():
    def crossing(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            y = pyro.sample("y", dist.Categorical(torch.ones(7)))  # 343 joint values
        pyro.sample("x", dist.Normal((y + z).mean(-1, keepdim=True), 1.0), obs=x[0])

    def two_scales(x):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        with pyro.plate("data", 3), pyro.poutine.scale(scale=10.0):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(y + z, 1.0), obs=x)

    def unnested(x):
        rows, columns = pyro.plate("rows", 40, dim=-1), pyro.plate("columns", 30, dim=-2)
        with rows:
            z, y = pyro.sample("z", dist.Bernoulli(0.3)), pyro.sample("y", dist.Bernoulli(0.3))
        with columns:
            w = pyro.sample("w", dist.Bernoulli(0.3))
        with rows, columns:
            pyro.sample("x", dist.Normal(y + w + z, 1.0), obs=x[0])

    def plate_guide(x):
        with pyro.plate("rows", 40, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("b", torch.tensor(0.3))))

    def stacked(x):
        with pyro.plate("data", 3):
            y, z = pyro.sample("y", dist.Categorical(torch.ones(7))), pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(y.view(3) + z, 1.0), obs=x)

    refused("'x' outside a plate depends on site 'y' inside it.*Draw 'y' in the guide", crossing)
    refused(r"'y' of the model alone.*\('y': 1, 'x': 10\), but the scales of these differ", two_scales)
    refused("'w', 'y' of the model alone depend on each other across plates|'y', 'w' of", unnested, plate_guide)
    refused(r"exponentially .* over the values of 31 draws", unnested, plate_guide)
    refused("leading dims, which the program cannot take.*Index from the right", stacked)


@pytest.mark.parametrize("estimator", ["rloo", "enumerate"])
def test_many_elements_of_a_site_of_the_model_alone_that_hang_together_are_refused(estimator):
    """A term in the plate that reads the other elements too: sums over each by itself would be silently wrong."""

    def model(x):
        with pyro.plate("data", 3):
            y = pyro.sample("y", dist.Categorical(torch.ones(13)))  # 2197 joint values
        z = pyro.sample("z", dist.Bernoulli(0.3))
        with pyro.plate("data again", 3):
            pyro.sample("x", dist.Normal(y - 0.5 * y.sum(-1, keepdim=True) + z, 1.0), obs=x)

    def scalar(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("c", torch.tensor(0.3))))

    refused("'y'.*all joint values of the plate's elements", model, scalar, estimator)


def test_too_large_a_sum_is_refused_before_work():
    def model(x):
        total = 0.0
        for i in range(14):
            total = total + pyro.sample(f"y{i}", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(total + z, 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    TraceELBO("rloo", num_particles=2).loss(model, guide, DATA)
    small = {"y0": Enumerate(max_elements=10_000), "y*": Enumerate(max_elements=8_000), "z": "rloo"}
    refused(r"14 site\(s\) of the model alone.*1\.64e\+04 elements.*1e\+04 and .* allowed", model, guide, small)
    slow = {"y*": Enumerate(max_operations=10_000), "z": "rloo"}
    refused(r"operations a row.*Put chains in pyro\.markov.*by 'rloo' or 'nvil'", model, guide, slow)
    many = TraceELBO({"y*": Enumerate(max_elements=2**15), "z": "rloo"}, num_particles=4)
    many.loss_and_grads(model, guide, DATA)
    assert "4 rows at once would be beyond the budget" in str(many.plan)


@pytest.mark.statistical
def test_importance_weighted_bounds_see_the_marginal():
    """The bound of three particles a datum and its gradient, against the mean over all draws of the three bits."""
    torch.manual_seed(0)
    elbo = TraceIWELBO("vimco", num_particles=3, num_outer_samples=4_000)
    loss = elbo.loss_and_grads(mixed, guide, DATA)
    found = gradients()
    a = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    free = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    y, z = torch.arange(3.0), torch.tensor([[0.0], [1.0]])
    joint = dist.Bernoulli(0.2 + 0.2 * y).log_prob(z) + free.log() - free.sum().log()
    exact = torch.zeros(())
    for x, logit in zip(DATA, a, strict=True):
        log_q = dist.Bernoulli(logits=logit).log_prob(z.flatten())
        log_w = (joint + dist.Normal(y - z, 0.7).log_prob(x)).logsumexp(-1) - log_q
        for draws in torch.cartesian_prod(*[torch.arange(2)] * 3):
            bound = log_w[draws].logsumexp(0) - math.log(3)
            exact = exact - log_q[draws].sum().exp() * bound
    exact.backward()
    assert loss == pytest.approx(exact.item(), abs=0.02)
    assert torch.allclose(found["a"], a.grad, atol=0.02)
    assert torch.allclose(found["weights"], free.grad, atol=0.03)


class Branches:
    """Control flow on a site y of the model alone, whose values lead to other sites."""

    def __init__(self, weight=1.0, plate=False, many=3):
        self.phi, self.loc = torch.tensor([0.3, -0.5], requires_grad=True), torch.tensor(0.4, requires_grad=True)
        self.weights = torch.linspace(-0.5, 1.0, many).requires_grad_()
        self.weight, self.plate = weight, plate

    def model(self):
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.7))
        with pyro.plate("outer", 1, dim=-2) if self.plate else nullcontext():
            y = pyro.sample("y", dist.Categorical(logits=self.weights))
            loc = 1.0 - a if y.item() == 0 else self.loc * y
            if y.item() == 2:
                loc = loc + b * pyro.sample("w", dist.Bernoulli(torch.sigmoid(self.loc)))
            with pyro.plate("observations", 3), pyro.poutine.scale(scale=self.weight):
                pyro.sample("x", dist.Normal(loc, 0.7), obs=DATA)

    def guide(self):
        a = pyro.sample("a", dist.Bernoulli(logits=self.phi[0]))
        pyro.sample("b", dist.Bernoulli(logits=self.phi[1] + a))


@pytest.mark.filterwarnings("ignore:This program cannot take")
def test_a_program_without_leading_dims_is_summed_by_a_run_for_each_value(monkeypatch):
    """The exact means of gradients and losses, over the guide's four values; planted: the first value's run alone."""
    pair = Branches()
    exact, elbo = Oracle()(pair.model, pair.guide), TraceELBO(Forced())
    wanted = {id(leaf): exact.gradients[name] for name, leaf in exact.parameters.items()}

    def error(leaf):
        return (mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], leaf) - wanted[id(leaf)]).abs().max()

    assert max(map(error, (pair.phi, pair.weights, pair.loc))) < 1e-5
    assert elbo.plan.marginals.one_by_one
    assert "exact sums: largest table 7 elements" in str(elbo.plan)
    losses = torch.tensor([elbo.loss(pair.model, pair.guide) for _ in range(100)])
    assert abs(losses.mean() - exact.loss) < 5 * losses.std() / 10
    assert TraceIWELBO("vimco", num_particles=2).loss_and_grads(pair.model, pair.guide) < 100
    every = sums_one_by_one.joint_traces
    monkeypatch.setattr(sums_one_by_one, "joint_traces", lambda *given: itertools.islice(every(*given), 1))
    assert error(pair.phi) > 0.01


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weight": 0.5}, "scales of these differ"),
        ({"plate": True, "many": 300}, "more than 256 joint values of 'y'"),
        ({"many": 300}, "more than 256"),
    ],
)
def test_what_cannot_be_summed_without_leading_dims(settings, reason):
    pair = Branches(**settings)
    with pytest.raises(EnumerationError, match=reason):
        TraceELBO("nvil").loss(pair.model, pair.guide)


# Where a plan needs nothing of what the sums join, its first step is what tries them


def in_a_chain(x):
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(logits=pyro.param("a", lambda: torch.eye(3))[z]))
        pyro.sample(f"x{t}", dist.Normal(z.float(), 1.0), obs=x[t])


def in_plates(x):
    z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
    with pyro.plate("p", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(z + y.float(), 1.0), obs=x)


def scaled_apart(x):
    with poutine.scale(scale=2.0):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def without_room(x):
    with pyro.plate("p", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        pyro.sample("x", dist.Normal(z.view(len(x)), 1.0), obs=x)


def continuous(x):
    pyro.sample("b", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


def beside_a_slope(x):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(logits=b))
    pyro.sample("x", dist.Normal(z + pyro.param("a", torch.tensor(0.3)), 1.0), obs=x[0])


def draws_nothing(x):
    pass


def first_call(model, guide, estimator) -> Any:
    """Loss, gradients and plan of a first call, or the error."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO(estimator)
    try:
        loss = elbo.loss_and_grads(model, guide, torch.tensor([0.3, 1.1, -0.4]))
    except EnumerationError as error:
        return type(error), str(error)
    slopes = [p.unconstrained().grad.tolist() for p in pyro.get_param_store().values()]
    return loss, slopes, str(elbo.plan), str(elbo.plan.cost)


@pytest.mark.parametrize("estimator", ["enumerate", "auto", Enumerate(max_elements=4), Enumerate(max_operations=8)])
@pytest.mark.parametrize("model", [in_a_chain, in_plates, scaled_apart, without_room, beside_a_slope])
def test_what_a_first_step_tries_is_what_was_tried_before(monkeypatch, model, estimator):
    guide = continuous if model is beside_a_slope else draws_nothing
    tried, try_sums = [], marginalisation.try_sums

    def trying(*given, **settings):
        tried.append(given)
        return try_sums(*given, **settings)

    monkeypatch.setattr(marginalisation, "try_sums", trying)
    found = first_call(model, guide, estimator)
    if isinstance(found[0], float):
        assert not tried
    monkeypatch.setattr(engine, "make_plan", lambda *given, by_step, **more: make_plan(*given, **more))
    assert first_call(model, guide, estimator) == found


def test_a_sum_beyond_the_budget_is_refused_before_a_first_step_takes_it(monkeypatch):
    monkeypatch.setattr(marginalisation, "contract", lambda component: pytest.fail("it is summed over"))
    error, text = first_call(in_a_chain, draws_nothing, Enumerate(max_operations=8))
    assert error is BudgetError
    assert "operations a row" in text


def test_sums_that_a_first_step_cannot_take_go_one_by_one(monkeypatch):
    """The step raises, in the place of what a trial of the sums would have: the plan is that of the trial."""
    expected = first_call(in_plates, draws_nothing, "enumerate")

    def raising(*given):
        raise ValueError("no such dim")

    monkeypatch.setattr(marginalisation, "components", raising)
    found = first_call(in_plates, draws_nothing, "enumerate")
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert "one joint value after another" in found[2]


def beside_each_other(x, shift):
    z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("b", torch.tensor(0.3))))
    y = pyro.sample("y", dist.Bernoulli(0.3 + 0.4 * z))
    if len(x) > 3:
        raise ValueError("too long")
    pyro.sample("x", dist.Normal(torch.stack([z, 2 * y], -1).sum(-1) + shift(), 1.0), obs=x[0])


DRAWN = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    "python": lambda: random.random(),
}


@pytest.mark.parametrize("library", DRAWN)
def test_a_first_step_that_cannot_take_its_sums_has_drawn_nothing(library):
    """Values beside each other do not stack, which the first step finds out after the program has drawn a number."""
    x, draw = torch.tensor([0.3]), DRAWN[library]
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    shift = draw()
    pyro.set_rng_seed(3)
    elbo = TraceELBO("enumerate")

    def model(x):
        first = draw()
        beside_each_other(x, lambda: first)

    loss = elbo.loss(model, draws_nothing, x)
    assert "one joint value after another" in str(elbo.plan)
    p = torch.sigmoid(torch.tensor(0.3)).item()
    weights = {
        (z, y): (p if z else 1 - p) * (q if y else 1 - q) for z in (0, 1) for y in (0, 1) for q in [0.3 + 0.4 * z]
    }
    density = sum(w * math.exp(-0.5 * (0.3 - z - 2 * y - shift) ** 2) for (z, y), w in weights.items())
    assert loss == pytest.approx(0.5 * math.log(2 * math.pi) - math.log(density), rel=1e-5)


def test_a_refused_first_call_leaves_no_plan():
    pyro.clear_param_store()
    elbo = TraceELBO("enumerate")
    with pytest.raises(SettingError, match="made at the first call"):
        print(elbo.plan)
    model = partial(beside_each_other, shift=lambda: 0.0)
    small = TraceELBO(Enumerate(max_operations=8))
    with pytest.raises(BudgetError):
        small.loss(in_a_chain, draws_nothing, torch.zeros(3))
    with pytest.raises(SettingError, match="made at the first call"):
        print(small.plan)
    with pytest.raises(ValueError, match="too long"):
        elbo.loss(model, draws_nothing, torch.zeros(4))
    assert math.isfinite(elbo.loss(model, draws_nothing, torch.zeros(3)))

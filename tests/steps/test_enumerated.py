"""Exact sums: what is enumerated, how, and what is refused; what chains cost that the guide draws too."""

import os
import sys
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_discrete import Enumerate, TraceELBO
from pyro_discrete.elbos import engine, settling
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError
from pyro_discrete.planning.plan import Jointly, OneByOne, Parallel
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.enumerated.parallel import enumerated_loss
from pyro_discrete.sums.packed_terms import CoupledElementsError
from pyro_discrete.testing import exact_gradient, exact_loss
from tests.support.pairs import DATA, gradients, layers, layers_guide


def agrees(model, guide, *args, estimator="enumerate"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo = TraceELBO(estimator)
        loss = elbo.loss_and_grads(model, guide, *args)
    ours, exact = gradients(), exact_gradient(model, guide, *args)
    assert loss == pytest.approx(float(exact_loss(model, guide, *args)), abs=1e-5)
    for name, gradient in ours.items():
        assert torch.allclose(gradient, exact[name].to(gradient), atol=1e-5)
    return elbo.plan


def test_event_dims_are_enumerated_jointly_where_pyro_samples_them():
    assert agrees(layers, layers_guide, DATA).path == "enumerated"
    pyros = [TraceEnum_ELBO(max_plate_nesting=1).loss(layers, config_enumerate(layers_guide), DATA) for _ in range(5)]
    assert max(pyros) - min(pyros) > 0.1  # sampled, without a word


def test_sites_of_the_model_alone_are_marginalised_without_annotation():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]))))
            bits = pyro.sample("bits", dist.Bernoulli(0.3 * torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z.to(x) + bits.sum(-1), 1.0), obs=x)

    def guide(x):
        pass

    for estimator in ("enumerate", "auto"):
        agrees(model, guide, DATA[:2], estimator=estimator)


def test_markov_chain_costs_grow_with_its_length_alone():
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model(x):
        z = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z{t}", dist.Categorical(transition[z]))
            pyro.sample(f"x{t}", dist.Normal(pyro.param("locs", torch.tensor([-1.0, 1.0]))[z], 1.0), obs=x[t])

    x = torch.randn(60)
    loss = TraceELBO("enumerate").loss_and_grads(model, lambda x: None, x)
    alpha = transition[0].log()
    locs = torch.tensor([-1.0, 1.0])
    for t in range(60):
        alpha = alpha + dist.Normal(locs, 1.0).log_prob(x[t])
        if t < 59:
            alpha = torch.logsumexp(alpha.unsqueeze(-1) + transition.log(), 0)
    assert loss == pytest.approx(-alpha.logsumexp(0).item(), abs=1e-3)


def test_control_flow_on_a_drawn_value_goes_one_by_one():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        loc = 2 * pyro.sample("w", dist.Bernoulli(0.3)) if z.item() > 0.5 else torch.tensor(-1.0)
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[0])

    def guide(x):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        if z.item() > 0.5:
            pyro.sample("w", dist.Bernoulli(logits=pyro.param("b", torch.tensor(-0.2))))

    assert isinstance(agrees(model, guide, DATA).way, OneByOne)
    elbo = TraceELBO("auto")
    elbo.loss_and_grads(model, guide, DATA)
    assert elbo.plan.path == "sequential"


@pytest.mark.filterwarnings("ignore:This program")
def test_control_flow_beside_a_site_of_the_model_alone():
    """By a guide's draw, whose values go one by one: the model's own are summed. By its own value: a run for each."""

    def model(x, own=False):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        y = pyro.sample("y", dist.Categorical(pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]))))
        scale = 0.5 if (y if own else z).item() > 0.5 else 1.5
        pyro.sample("x", dist.Normal(y - 2 * z, scale), obs=x[0])

    def guide(x, own=False):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    way = agrees(model, guide, DATA).way
    assert isinstance(way, Jointly)
    assert way.in_branches
    assert not way.own_too
    way = agrees(model, guide, DATA, True).way
    assert isinstance(way, Jointly)
    assert way.own_too


def test_model_site_outside_the_plate_that_depends_on_it():
    """Pyro takes all elements in step, and is silently wrong; here their joint values are summed."""

    def model(x, dim):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(z.mean() if dim is None else z.mean(dim, keepdim=True), 0.3), obs=x[0])

    def guide(x, dim):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor([0.3, -0.2, 0.1]))))

    assert isinstance(agrees(model, guide, DATA, -1).way, Jointly)
    assert TraceELBO("auto").loss(model, guide, DATA, -1) > 0
    plan = agrees(model, guide, DATA, None)  # which takes no rows
    assert plan.way.one_by_one
    assert "at site 'y' a row's log-probability changes" in plan.reason


def test_too_many_joint_values_are_refused():
    def model(x):
        with pyro.plate("data", 40):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(z.mean(-1, keepdim=True), 0.3), obs=x[0])

    def guide(x):
        with pyro.plate("data", 40):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(40))))

    with pytest.raises(EnumerationError, match=r"'z' may influence a later site outside.*1\.1e\+12 joint values"):
        TraceELBO("enumerate").loss(model, guide, DATA)
    elbo = TraceELBO("auto")
    elbo.loss(model, guide, DATA)
    assert elbo.plan.path != "enumerated"


def test_enumerated_dims_of_earlier_sites_count_towards_the_size():
    def chain(x):
        z = torch.tensor(0.0)
        for t in range(8):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=z - 0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[0])

    def guide(x):
        total = torch.tensor(0.0)
        for t in range(8):
            total = total + pyro.sample(f"z{t}", dist.Bernoulli(logits=total - 0.5))

    TraceELBO("enumerate").loss(chain, guide, DATA)
    with pytest.raises(EnumerationError, match="site 'z6' needs a table of 128"):
        TraceELBO(Enumerate(max_elements=100)).loss(chain, guide, DATA)


def test_a_sum_beyond_the_budget_is_refused_before_it_is_contracted():
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def chain(x, observed=True):
        z = torch.tensor(0)
        for t in pyro.markov(range(12)):
            z = pyro.sample(f"z{t}", dist.Categorical(transition[z]))
            if observed:
                pyro.sample(f"x{t}", dist.Normal(z.to(x), 1.0), obs=x[0])

    def guide(x):
        chain(x, observed=False)

    elbo = TraceELBO("enumerate")
    elbo.loss(chain, guide, DATA)
    assert "exact sums: largest table 4 elements, 163 operations" in str(elbo.plan)
    with pytest.raises(EnumerationError, match=r"'z0', 'z1', .* together needs: largest .* and 100 are allowed"):
        TraceELBO(Enumerate(max_operations=100)).loss(chain, guide, DATA)


def test_beside_sampled_sites_elements_that_share_terms_have_rows_of_their_own():
    def model(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        w = pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(z.mean(-1, keepdim=True) + w, 0.3), obs=x[0])

    def guide(x):
        pyro.sample("w", dist.Bernoulli(0.4))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))

    elbo = TraceELBO({"z": "enumerate", "w": "rloo"}, num_particles=2)
    elbo.loss_and_grads(model, guide, DATA)
    assert elbo.plan.rows == 1 + 3 * 2
    with pytest.raises(EnumerationError, match=r"site 'z'.*share later terms.* 7 rows .*Enumerate\(max_rows=7\)"):
        TraceELBO({"z": Enumerate(max_rows=6), "w": "rloo"}, num_particles=2).loss_and_grads(model, guide, DATA)


def test_continuous_sites_are_sampled_beside_enumerated_ones():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))

    elbo = TraceELBO("enumerate", num_particles=4000)
    elbo.loss_and_grads(model, guide, DATA)
    exact = exact_gradient(model, guide, DATA)
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, exact[name].to(gradient), atol=0.12)


def test_elements_that_share_no_term_are_summed_over_one_by_one():
    """In the model alone 2^40 joint values are refused; "indecater" is exact in one draw of the guide's."""
    weights, x = torch.linspace(-1, 1, 40), torch.linspace(-2, 2, 40)

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(40)).to_event(1))
        pyro.sample("x", dist.Normal(weights * z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.linspace(-1, 1, 40))).to_event(1))

    with pytest.raises(EnumerationError, match=r"'z' needs a table of 4\.4e\+13.*Draw it in the guide too"):
        TraceELBO("enumerate").loss(model, lambda x: None, x)
    elbo = TraceELBO("indecater")
    elbo.loss_and_grads(model, guide, x)
    a = torch.linspace(-1, 1, 40, requires_grad=True)
    q = a.sigmoid()
    one, zero = (dist.Normal(weights * v, 1.0).log_prob(x) + dist.Bernoulli(0.3).log_prob(v) for v in torch.eye(2)[0])
    (q * (q.log() - one) + (1 - q) * ((1 - q).log() - zero)).sum().backward()
    assert elbo.plan.rows == 41
    assert torch.allclose(gradients()["a"], a.grad, atol=1e-4)


@pytest.mark.parametrize("later", [torch.float32, torch.float64])
def test_sites_of_two_dtypes_are_enumerated_in_parallel(later):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=later)))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(len(x), dtype=torch.float64))))
            logits = pyro.param("b", torch.tensor([0.1, -0.2, 0.3], dtype=later))
            pyro.sample("k", dist.Categorical(logits=logits * z.to(later).unsqueeze(-1)))

    assert not agrees(model, guide, DATA.double()).reason


# Chains that the guide draws too, all values enumerated: what a step costs, and whose dim is whose


def calls_of_a_step(length):
    """Calls that the package makes in the first step, planning included, on a chain that is in the guide too."""

    def steps(rates):
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(rates[t][0] * z + rates[t][1] * (1 - z)))
            yield t, z

    def model():
        for t, z in steps(torch.tensor([0.7, 0.2]).expand(length, 2).unbind()):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide():
        list(steps(pyro.param("rates", torch.full((length, 2), 0.4)).unbind()))

    calls = 0

    def note(frame, event, _):
        nonlocal calls
        caller = frame.f_back if event == "call" else frame if event == "c_call" else None
        calls += caller is not None and f"{os.sep}pyro_discrete{os.sep}" in caller.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        TraceELBO("enumerate").loss_and_grads(model, guide)
    finally:
        sys.setprofile(before)
        pyro.clear_param_store()
    return calls


def test_a_chain_in_the_guide_too_takes_calls_in_proportion_to_its_length():
    short, middle, long = (calls_of_a_step(length) for length in (20, 40, 80))
    assert long - middle < 2.1 * (middle - short)


@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency")
def test_elements_are_not_taken_in_step_where_a_chain_uses_its_dims_again():
    def chain(rate, crossed, observed):
        z, plate = torch.tensor(0.0), pyro.plate("data", 2)
        for t in pyro.markov(range(4)):
            if t < 2:
                with plate:
                    z = pyro.sample(f"z{t}", dist.Bernoulli(rate + 0.4 * z))
                continue
            if t == 2:
                z = z.mean(-1, keepdim=True) if crossed else torch.tensor(0.0)
            z = pyro.sample(f"z{t}", dist.Bernoulli(rate + 0.4 * z))
            if observed:
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def model(crossed):
        chain(0.3, crossed, True)

    def guide(crossed):
        chain(pyro.param("rate", torch.tensor(0.2)), crossed, False)

    elbo = TraceELBO("enumerate")
    exact = float(exact_loss(model, guide, False))
    assert elbo.loss(model, guide, False) == pytest.approx(exact, abs=1e-5)
    plan = elbo.plan
    assert isinstance(plan.way, Jointly)  # as the wiring is not known in advance; in parallel, the check is by dims
    plan = replace(plan, way=Parallel(plan.way.settings, explicit=True))
    loss = enumerated_loss(plan, Pair(model, guide, (False,), {}))
    assert loss.item() == pytest.approx(exact, abs=1e-5)
    with pytest.raises(EnumerationError, match=r"'z2' outside plate data depends on site 'z1' enumerated inside it"):
        enumerated_loss(plan, Pair(model, guide, (True,), {}))


@pytest.mark.parametrize("masked", [False, True])
def test_validation_changes_no_number_of_a_sum(masked):
    def mixture(x, q):
        with pyro.plate("data", 2 * len(x), subsample=torch.arange(len(x))):
            with pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=(x > 0) if masked else True):
                place = pyro.sample("place", q or dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))[z] + place, 1.0), obs=x)

    def model(x):
        mixture(x, None)

    def guide(x):
        logits = pyro.param("q", torch.zeros(len(x), 3))
        with pyro.plate("data", 2 * len(x), subsample=torch.arange(len(x))):
            with pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=(x > 0) if masked else True):
                pyro.sample("place", dist.Normal(pyro.param("mean", torch.zeros(())), 0.5))
            pyro.sample("z", dist.Categorical(logits=logits))

    x, found = torch.tensor([-1.0, 0.3, 2.0]), []
    for make in (lambda: TraceELBO("enumerate"), lambda: TraceEnum_ELBO(max_plate_nesting=1)):
        for validated in (True, False):
            pyro.clear_param_store()
            torch.manual_seed(0)
            with pyro.validation_enabled(validated):
                elbo, marked = make(), (config_enumerate(model), config_enumerate(guide))
                elbo.loss(*marked, x)  # plans
                torch.manual_seed(0)
                found.append((elbo.loss_and_grads(*marked, x), gradients()))
    for loss, slopes in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, found[0][1][name])


def test_a_value_that_a_site_refuses_is_told_of_with_validation_off_too():
    def model(x):
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Poisson(2.0, validate_args=True), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.zeros(()))))

    elbo = TraceELBO("enumerate")
    with pyro.validation_enabled(False):
        elbo.loss_and_grads(model, guide, torch.tensor(1.0))
        with pytest.raises(ValueError, match="'x'"):
            elbo.loss_and_grads(model, guide, torch.tensor(-1.0))


def crossed():
    """A draw in a plate that the model sums up outside of it: joint values of all elements."""
    with pyro.plate("p", 2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).float(), 1.0).to_event(1), obs=torch.ones(1))


def apart():
    with pyro.plate("p", 2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.ones(2))


def of_one_plate_size():
    """It raises where values stand in dims on the left."""
    with pyro.plate("p", 2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(z.view(2).float(), 1.0), obs=torch.ones(2))


def drawn():
    with pyro.plate("p", 2):
        pyro.sample("z", dist.Categorical(logits=pyro.param("q", lambda: torch.zeros(2, 3))))


def first_loss(model, estimator):
    """Loss, gradient and plan of a first call, or the error."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO(estimator)
    try:
        loss = elbo.loss_and_grads(model, drawn)
    except DiscreteInferenceError as error:
        return type(error), str(error)
    return loss, pyro.param("q").unconstrained().grad.tolist(), str(elbo.plan)


@pytest.mark.parametrize("estimator", ["enumerate", "auto", Enumerate(max_elements=4), Enumerate(max_operations=8)])
@pytest.mark.parametrize("model", [crossed, apart, of_one_plate_size])
def test_sums_that_a_first_step_tries_are_those_tried_before_it(monkeypatch, model, estimator):
    found = first_loss(model, estimator)
    monkeypatch.setattr(settling, "tried_by_step", lambda plan: False)
    monkeypatch.setattr(engine, "tried_by_step", lambda plan: False)
    assert first_loss(model, estimator) == found


@pytest.mark.parametrize("wrong", [CoupledElementsError("a term", "a sum joins them"), ValueError("no such dim")])
def test_sums_that_a_first_step_cannot_take_are_tried(monkeypatch, wrong):
    """The step raises, in the place of what a trial of the sums would have: the plan is that of the trial."""
    calls, loss = [], settling.WAYS[Parallel].loss

    def raising(*given):
        calls.append(given[0].way)
        if len(calls) <= 2:  # the first step, and the trial
            raise wrong
        return loss(*given)

    monkeypatch.setattr(settling.WAYS[Parallel], "loss", raising)
    monkeypatch.setattr(settling.WAYS[OneByOne], "loss", loss)
    found = first_loss(apart, "enumerate")
    assert isinstance(found[0], float)
    assert "joint value" in str(found[-1])

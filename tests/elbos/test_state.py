"""What an ELBO has learned and chosen: saved, loaded, and never shared."""

import copy
import io
import math
import pickle

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_discrete import NVIL, TraceELBO, TraceExpectation, TraceIWELBO
from pyro_discrete.errors import SettingError
from tests.support.pairs import DATA, gradients, layers, layers_guide, mixture, mixture_guide


def test_state_goes_through_a_file_before_the_first_call():
    elbo = TraceELBO({"z1": NVIL(learning_rate=1e-2), "z2": "nvil"})
    svi = SVI(layers, layers_guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    for _ in range(5):
        svi.step(DATA)
    file = io.BytesIO()
    torch.save(elbo.state_dict(), file)
    file.seek(0)
    other = TraceELBO({"z1": NVIL(learning_rate=1e-2), "z2": "nvil"})
    result = other.load_state_dict(torch.load(file, weights_only=True))
    assert not result.missing_keys
    assert not result.unexpected_keys
    before = other.state_dict()
    assert before.keys() == elbo.state_dict().keys()
    for name in ("z1", "z2"):
        key = f"estimators.{name}.moments.sums"
        assert torch.equal(before[key], elbo.state_dict()[key])
    losses = []
    for each in (elbo, other):
        gradients()
        torch.manual_seed(5)
        losses.append((each.loss_and_grads(layers, layers_guide, DATA), gradients()))
    assert losses[0][0] == losses[1][0]
    for name, gradient in losses[0][1].items():
        assert torch.equal(gradient, losses[1][1][name])
    assert int(other.step) == int(elbo.step) == 6
    own = [dict(each.estimators["z1"].named_parameters())["network.0.weight"] for each in (elbo, other)]
    assert torch.equal(own[0], own[1])


def test_choice_of_auto_is_saved():
    first = TraceELBO("auto", num_particles=3)
    first.loss(layers, layers_guide, DATA)
    assert first.state_dict()["_extra_state"] == {"chosen": {"z1": "enumerate", "z2": "enumerate"}}
    second = TraceELBO("auto", num_particles=3)
    second.load_state_dict(first.state_dict() | {"_extra_state": {"chosen": {"z1": "rloo", "z2": "rloo"}}})
    second.loss(layers, layers_guide, DATA)
    assert {site.estimator: site.why for site in second.plan.sites} == {"rloo": "auto: as saved"}


def test_two_elbos_never_share_parameters_and_their_names_can_be_read():
    first, second = TraceELBO("nvil"), TraceELBO("nvil")
    for elbo in (first, second):
        SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo).step(DATA)
    loaded = TraceELBO("nvil")
    loaded.load_state_dict(first.state_dict())
    SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=loaded).step(DATA)
    names = {name.split("$$$")[0] for name in pyro.get_param_store() if "$$$" in name}
    assert names == {"estimators.z", "estimators_2.z", "estimators_3.z"}
    weights = [elbo.estimators["z"].network[0].weight for elbo in (first, second, loaded)]
    assert len({id(w) for w in weights}) == 3


def test_pyro_checkpoint_continues_bit_for_bit():
    def steps(svi, count):
        return [svi.step(DATA) for _ in range(count)]

    def pair():
        elbo = TraceELBO("nvil")
        optimiser = pyro.optim.Adam({"lr": 0.01})
        return elbo, optimiser, SVI(mixture, mixture_guide, optimiser, loss=elbo)

    torch.manual_seed(0)
    elbo, optimiser, svi = pair()
    steps(svi, 3)
    file = io.BytesIO()
    torch.save(
        (pyro.get_param_store().get_state(), optimiser.get_state(), elbo.state_dict(), torch.get_rng_state()), file
    )
    expected = steps(svi, 3)
    pyro.clear_param_store()
    file.seek(0)
    store, optimiser_state, state, rng = torch.load(file, weights_only=False)
    pyro.get_param_store().set_state(store)
    elbo, optimiser, svi = pair()
    optimiser.set_state(optimiser_state)
    elbo.load_state_dict(state)
    torch.set_rng_state(rng)
    assert steps(svi, 3) == expected
    assert elbo.state_dict().keys() == state.keys()


LEARNED = {
    "nvil": lambda: TraceELBO("nvil"),
    "captured": lambda: TraceELBO(NVIL(learning_rate=1e-2), compile="graph"),
    "relax": lambda: TraceELBO("relax", kl_weight=0.5),
    "bound": lambda: TraceIWELBO("nvil", num_particles=3),
    "expectation": lambda: TraceExpectation("nvil", entropy_weight=0.1),
}


def pickled(elbo):
    return pickle.loads(pickle.dumps(elbo))


def six_losses(elbo, between):
    """Of training steps under one seed, with something done after the third."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    losses = [svi.step(DATA) for _ in range(3)]
    between()
    return losses + [svi.step(DATA) for _ in range(3)]


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", LEARNED)
def test_a_whole_elbo_that_has_learned_is_copied_and_pickled(name, copied):
    """The copy makes the very next estimate, on parameters of its own, and goes on; the original is left as it was."""
    elbo = LEARNED[name]()

    def examine():
        other = copied(elbo)
        assert not {id(p) for p in elbo.parameters()} & {id(p) for p in other.parameters()}
        logit, estimates = pyro.get_param_store()._params["logit"], []
        for each in (elbo, other):
            with torch.random.fork_rng(devices=[]):
                loss = copy.deepcopy(each).differentiable_loss(mixture, mixture_guide, DATA)
            estimates.append(torch.autograd.grad(loss, logit)[0])
        assert torch.equal(*estimates)

    expected = six_losses(LEARNED[name](), lambda: None)
    assert six_losses(elbo, examine) == expected
    SVI(mixture, mixture_guide, pyro.optim.Adam({"lr": 0.01}), loss=copied(elbo)).step(DATA)


def test_plans_and_captures_are_copied_and_pickled():
    """Sampled ways know a program's state, which is no part of a copy; it is looked for again."""
    for elbo in (
        TraceELBO("rloo", num_particles=2),
        TraceELBO("gumbel_softmax", num_particles=2),
        TraceELBO("enumerate"),
        TraceELBO("rloo", num_particles=2, compile="graph"),
        TraceIWELBO("vimco", num_particles=2),
        TraceExpectation("nvil"),
    ):
        for _ in range(2):
            elbo.loss_and_grads(layers, layers_guide, DATA)
        for copied in (copy.deepcopy, pickled):
            assert str(copied(elbo.plan)) == str(elbo.plan)
            assert copied(elbo.plan).path == elbo.plan.path
            assert math.isfinite(copied(elbo).loss_and_grads(layers, layers_guide, DATA))
        if elbo.captures is not None:
            pickled(elbo.captures)


@pytest.mark.filterwarnings("ignore:This program cannot take")
def test_a_copied_plan_is_a_plan():
    """A step goes by it as by the first, where dependencies are looked for anew."""
    elbo = TraceELBO("rloo", num_particles=2)
    torch.manual_seed(3)
    elbo.loss_and_grads(layers, layers_guide, DATA)
    other = copy.deepcopy(elbo)
    other._plan, other._pair = pickle.loads(pickle.dumps(elbo.plan)), elbo._pair
    found = []
    for each in (elbo, other):
        gradients()
        torch.manual_seed(5)
        found.append((each.loss_and_grads(layers, layers_guide, DATA), gradients()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(g, found[1][1][n]) for n, g in found[0][1].items())


@pytest.mark.parametrize(
    "foreign",
    [
        torch.nn.Linear(2, 2).state_dict(),
        {},
        3,
        {"step": torch.tensor(1), "_extra_state": {"other": 1}},
        {"step": torch.tensor(1), "_extra_state": 5},
        {"step": torch.zeros(3), "_extra_state": {"chosen": {}}},
    ],
)
@pytest.mark.parametrize("made", [TraceELBO, TraceIWELBO])
def test_what_is_no_state_of_an_elbo_is_refused_by_that_name(made, foreign):
    with pytest.raises(SettingError, match=f"no state of {made.__name__}: .*state_dict"):
        made().load_state_dict(foreign)

"""Programs that decide by their arguments, or by what they hold: each branch has a plan of its own."""

import copy
import dataclasses
import itertools
import os
import random
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule

from pyro_discrete import TraceELBO, collapse
from pyro_discrete.inspection.decisions import decisions, first_look
from pyro_discrete.inspection.provenance import ARGUMENTS
from pyro_discrete.inspection.provenance import HELD as LOOKED
from pyro_discrete.planning import branches as branches_module
from pyro_discrete.planning.branches import MOST_BRANCHES
from pyro_discrete.programs.pair import Pair

BELOW, ABOVE, CHANCES = torch.tensor([-0.3, -2.0]), torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.7])

WAYS = {
    "if": lambda x, flag: bool(x.sum() > 0),
    "item": lambda x, flag: x.sum().item() > 0,
    "numpy": lambda x, flag: x.numpy().sum() > 0,
    "list": lambda x, flag: sum(x.tolist()) > 0,
    "flag": lambda x, flag: flag,
}


def pair(decides, drawn):
    def model(x, flag):
        with pyro.plate("p", 2):
            w = pyro.sample("w", dist.Bernoulli(CHANCES))
            loc = 2 * w.roll(1, -1) if decides(x, flag) else w
            pyro.sample("y", dist.Normal(loc, 1.0), obs=x)

    def guide(x, flag):
        if drawn:
            with pyro.plate("p", 2):
                pyro.sample("w", dist.Bernoulli(CHANCES))

    return model, guide


def right(x, on, drawn):
    each = []
    for values in itertools.product([0.0, 1.0], repeat=2):
        w = torch.tensor(values)
        term = dist.Normal(2 * w.roll(1, -1) if on else w, 1.0).log_prob(x).sum()
        each.append((dist.Bernoulli(CHANCES).log_prob(w).sum(), term))
    if drawn:
        return -float(sum(prior.exp() * term for prior, term in each))
    return -float(torch.stack([prior + term for prior, term in each]).logsumexp(0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("order", [(BELOW, ABOVE, BELOW), (ABOVE, BELOW, ABOVE)])
def test_each_branch_is_planned(way, drawn, order):
    model, guide = pair(WAYS[way], drawn)
    elbo = TraceELBO("enumerate")
    for x in order:
        found = elbo.loss_and_grads(model, guide, x, bool(x.sum() > 0))
        assert found == pytest.approx(right(x, x.sum() > 0, drawn), abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_collapsed_program_with_other_data(way):
    collapsed = collapse(pair(WAYS[way], False)[0])
    for x in (BELOW, ABOVE, BELOW):
        found = poutine.trace(collapsed).get_trace(x, bool(x.sum() > 0)).log_prob_sum()
        assert -float(found) == pytest.approx(right(x, x.sum() > 0, False), abs=1e-4)


def test_what_has_been_seen_is_not_planned_again(monkeypatch):
    model, guide = pair(WAYS["if"], False)
    elbo = TraceELBO("enumerate")
    plans = []
    for k in range(6):
        elbo.loss_and_grads(model, guide, (ABOVE if k % 2 else BELOW) * (1 + 0.1 * k), False)
        plans.append(elbo.plan)
    assert plans[0] is plans[2] is plans[4]
    assert plans[1] is plans[3] is plans[5]


def test_a_program_that_decides_by_nothing_is_looked_at_once(monkeypatch):
    def model(x):
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(torch.where(x > 0, w, -w), 1.0).to_event(1), obs=x)

    def guide(x):
        pass

    looks = []
    monkeypatch.setattr(branches_module, "decisions", lambda pair: looks.append(pair) or "one")
    elbo = TraceELBO("enumerate")
    for x in (ABOVE, BELOW, 2 * ABOVE):
        elbo.loss(model, guide, x)
    assert not looks  # what is seen of it shows what it does, too
    assert not elbo.plan.met.looks


def test_numbers_that_are_computed_with_make_no_branch():
    def model(x, weight):
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(weight * w + x.mean().item(), 1.0), obs=x[0])

    def guide(x, weight):
        pass

    elbo = TraceELBO("enumerate")
    plans = [(elbo.loss(model, guide, torch.tensor([0.3, 0.1 * k]), 0.1 + 0.2 * k), elbo.plan)[1] for k in range(4)]
    assert all(plan is plans[0] for plan in plans)


def test_branches_without_end_end_the_watch_with_a_warning():
    def model(x):
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(w + torch.arange(99.0).roll(int(x[1]))[0], 1.0), obs=x[0])

    def guide(x):
        pass

    elbo = TraceELBO("enumerate")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for k in range(MOST_BRANCHES + 2):
            elbo.loss(model, guide, torch.tensor([1.0, k]))
    assert [str(w.message) for w in seen if "from here on the last one is believed" in str(w.message)]


@dataclasses.dataclass
class Box:
    value: Any


class Holder(PyroModule):
    def __init__(self, value, name="value"):
        super().__init__()
        if torch.is_tensor(value):
            self.register_buffer("value", value)
        else:
            self.value = value


def held(make):
    """A program that is made of `make() -> (how it decides, how that is set, its arguments)`."""
    return pytest.param(make, id=make.__name__)


def a_parameter():
    return (
        lambda: pyro.param("c", torch.tensor(-1.0)).item() > 0,
        lambda on: pyro.param("c", torch.tensor(-1.0)).data.fill_(1.0 if on else -1.0),
        lambda: (),
    )


def a_number_of_the_closure():
    box = {"on": 0.0}
    return lambda: box["on"] > 0, lambda on: box.update(on=float(on)), lambda: ()


def a_tensor_of_the_closure():
    box = torch.zeros(2)
    return lambda: box.sum() > 0, lambda on: box.fill_(float(on)), lambda: ()


def a_buffer():
    module = Holder(torch.zeros(2))
    return lambda: module.value.tolist()[0] > 0, lambda on: module.value.fill_(float(on)), lambda: ()


def an_attribute():
    module = Holder(False)
    return lambda: module.value, lambda on: setattr(module, "value", on), lambda: ()


def an_array():
    array = np.zeros(1)
    return lambda: array[0] > 0, lambda on: array.fill(float(on)), lambda: ()


def the_environment():
    name = "PYRO_DISCRETE_TEST_BRANCH"
    return lambda: os.environ[name] == "1", lambda on: os.environ.__setitem__(name, str(int(on))), lambda: ()


def a_number_given():
    box = [0.0]
    return lambda c: c > 0, lambda on: box.__setitem__(0, float(on)), lambda: (box[0],)


def a_whole_number_given():
    box = [0]
    return lambda c: c == 3, lambda on: box.__setitem__(0, 3 if on else 2), lambda: (box[0],)


def an_object_given():
    box = Box(0.0)
    return lambda b: b.value > 0, lambda on: setattr(box, "value", float(on)), lambda: (box,)


def a_tensor_in_an_object_given():
    box = Box(torch.zeros(()))
    return lambda b: b.value.item() > 0, lambda on: box.value.fill_(float(on)), lambda: (box,)


HELD = [
    *(a_parameter, a_number_of_the_closure, a_tensor_of_the_closure, a_buffer, an_attribute, an_array),
    *(the_environment, a_number_given, a_whole_number_given, an_object_given, a_tensor_in_an_object_given),
]


def deciding_pair(decides, drawn):
    def model(*given):
        with pyro.plate("p", 2):
            w = pyro.sample("w", dist.Bernoulli(CHANCES))
            pyro.sample("y", dist.Normal(2 * w.roll(1, -1) if decides(*given) else w, 1.0), obs=ABOVE)

    def guide(*given):
        if drawn:
            with pyro.plate("p", 2):
                pyro.sample("w", dist.Bernoulli(CHANCES))

    return model, guide


@pytest.mark.parametrize("make", [held(make) for make in HELD])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_branch_by_whatever_a_program_can_see(make, drawn, first):
    decides, put, given = make()
    model, guide = deciding_pair(decides, drawn)
    elbo, collapsed = TraceELBO("enumerate"), collapse(model)
    for on in (first, not first, first, not first):
        put(on)
        assert elbo.loss_and_grads(model, guide, *given()) == pytest.approx(right(ABOVE, on, drawn), abs=1e-4)
        if not drawn:
            found = poutine.trace(collapsed).get_trace(*given()).log_prob_sum()
            assert -found.item() == pytest.approx(right(ABOVE, on, drawn), abs=1e-4)


def test_rows_are_tried_in_each_branch():
    """Particles beside each other, which another branch joins, go one after another there."""
    box = {"joins": False}

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        loc = z * z.sum() if box["joins"] else z
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(3.0))

    def guide():
        pyro.sample("z", dist.Bernoulli(0.5))

    elbo = TraceELBO("rloo", num_particles=4)
    elbo.loss(model, guide)
    assert elbo.plan.path == "vectorised"
    box["joins"] = True
    with pytest.warns(UserWarning, match="cannot take a leading dim"):
        elbo.loss(model, guide)
    assert elbo.plan.path == "sequential"


def test_the_plan_says_why_each_call_is_looked_at():
    def model():
        c = pyro.param("c", torch.tensor(1.0))
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(w * (1 if c.item() > 0 else -1), 1.0), obs=torch.tensor(0.3))

    def guide():
        pass

    elbo = TraceELBO("enumerate")
    elbo.loss(model, guide)
    assert "to see which branch it takes: Python reads tensors that it holds" in str(elbo.plan)


@pytest.mark.parametrize("name", ["reinforce", "gumbel_softmax", "reinmax", "enumerate"])
def test_a_program_that_counts_its_runs_is_run_once_a_step(name):
    """Beside losses, which go another way than steps; once either has been met."""
    runs = []

    def model():
        runs.append(1)
        with pyro.plate("p", 2):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("y", dist.Normal(torch.tensor([-1.0, 0.5, 2.0])[z], 1.0), obs=ABOVE)

    def guide():
        with pyro.plate("p", 2):
            pyro.sample("z", dist.Categorical(logits=pyro.param("q", torch.zeros(3))))

    elbo = TraceELBO(name)
    for _ in range(2):
        elbo.loss(model, guide)
        elbo.loss_and_grads(model, guide)
    for call in (elbo.loss, elbo.loss_and_grads, elbo.loss_and_grads, elbo.loss):
        runs.clear()
        call(model, guide)
        assert len(runs) == 1


def test_a_copy_looks_anew():
    decides, put, _ = a_number_of_the_closure()
    model, guide = deciding_pair(decides, False)
    elbo = TraceELBO("enumerate")
    elbo.loss(model, guide)
    again = copy.deepcopy(elbo)
    put(True)
    assert again.loss(model, guide) == pytest.approx(right(ABOVE, True, False), abs=1e-4)


def test_one_run_shows_what_is_seen_and_done():
    """Parameters are made in the first run alone; where Python reads something, or a float is given, it takes more."""

    def model(x, weight=None):
        loc = pyro.param("loc", lambda: torch.linspace(-1.0, 1.0, 3).exp())
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("y", dist.Normal(loc[z] * (1.0 if weight is None else weight), 1.0), obs=x)

    def reads(x):
        model(x if x > 0 else -x)

    def guide(x, weight=None):
        pass

    one = Pair(model, guide, (torch.tensor(0.3),), {})
    seen, done, _ = first_look(one)
    assert (seen, done) == (frozenset(), decisions(one))
    assert decisions(Pair(lambda x: model(2 * x), guide, one.args, {})) != done
    assert first_look(Pair(model, guide, (torch.tensor(0.3), 0.5), {})) == (frozenset(), None, None)
    assert first_look(Pair(reads, guide, one.args, {}))[:2] == (frozenset({ARGUMENTS}), None)


class Counting(torch.nn.Module):
    """A module that counts its calls, in a buffer or an attribute."""

    def __init__(self, buffered: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.buffered, self.number = buffered, 0

    def forward(self, loc):
        if self.buffered:
            self.calls += 1
        else:
            self.number += 1
        return loc


@pytest.mark.parametrize("module", [torch.nn.Identity(), Counting(True), Counting(False)])
def test_the_first_run_is_the_trial_of_the_plan_if_it_leaves_modules_as_they_were(module):
    runs = []

    def model(x):
        runs.append(1)
        loc = pyro.param("loc", lambda: torch.linspace(-1.0, 1.0, 3))
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("y", dist.Normal(module(loc)[z], 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Categorical(logits=pyro.param("q", lambda: torch.zeros(3))))

    pair = Pair(model, guide, (torch.tensor(0.3),), {})
    trial = first_look(pair).trial
    assert (trial is not None) is isinstance(module, torch.nn.Identity)
    runs.clear()
    TraceELBO("rloo", num_particles=2).loss_and_grads(model, guide, *pair.args)
    assert len(runs) == (6 if trial is not None else 8)


class Peeking(dist.Bernoulli):
    """A distribution that has Python see what it draws."""

    def sample(self, sample_shape=()):
        value = super().sample(sample_shape)
        return value if value.sum() > 0 else value + 0


@pytest.mark.parametrize(
    ("law", "seen"),
    [(dist.Bernoulli, frozenset()), (Peeking, {LOOKED}), (lambda p: Peeking(p).mask(True), {LOOKED})],
    ids=["a library's", "a program's", "a program's in a library's"],
)
def test_a_run_of_which_a_further_one_does_not_show_how_it_draws_is_looked_at_itself(law, seen):
    """That one has the same draws, and is at generic numbers; of a program without such it is looked at as well."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", law(torch.tensor(0.5)))

    found = first_look(Pair(model, guide, (torch.tensor([0.3]),), {}))
    assert found.seen == seen
    assert found.trial is not None
    assert (found.trial.generic is None) is bool(seen)
    if found.trial.generic is not None:
        _, run = found.trial.generic
        assert run.traces[0].nodes["z"]["value"] is found.trial.guide_trace.nodes["z"]["value"]
        assert run.terms[1]["y"].term != found.trial.score(found.trial.model_trace.nodes["y"])
        assert pyro.param("loc") == 0.3


def test_a_branch_in_the_second_call_is_seen_though_the_first_was_not_noted():
    """Of a program by whose values nothing is decided, runs are noted from the first call on that may differ."""
    box = {"sign": 1.0}

    def model():
        w = pyro.sample("w", dist.Bernoulli(0.4))
        loc = w if box["sign"] > 0 else -w
        pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(0.8))

    def guide():
        pyro.sample("w", dist.Bernoulli(0.5))

    elbo = TraceELBO("enumerate")
    plans = []
    for sign in (1.0, -1.0, 1.0, 2.0, -1.0):
        box["sign"] = sign
        elbo.loss_and_grads(model, guide)
        plans.append(elbo.plan)
    assert plans[0] is plans[2] is plans[3]
    assert plans[1] is plans[4]
    assert plans[0] is not plans[1]


def beside_a_read_draw(number):
    """Python reads a draw in one branch of a number that it holds, in a way that takes several values; not so in the
    other."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        if number > 0:
            pyro.sample("y", dist.Normal(0.5 - 0.7 * float(z), 1.0), obs=torch.tensor(-0.9))
        pyro.sample("x", dist.Normal(0.5 * torch.as_tensor(z.tolist()), 1.0), obs=torch.tensor(-1.9))

    def guide():
        pyro.sample("z", dist.Bernoulli(0.6))

    return model, guide


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_a_branch_that_takes_no_rows_beside_what_python_reads_of_draws(first):
    """It raised what the program does where it is given several values at once."""
    number = torch.tensor(first)
    model, guide = beside_a_read_draw(number)
    elbo = TraceELBO("enumerate")
    for value in (first, 1.0 - first, 1.0 - first, first):
        number.fill_(value)
        right = 0.0
        for z, q, p in ((0.0, 0.4, 0.7), (1.0, 0.6, 0.3)):
            log_p = torch.tensor(p).log() + dist.Normal(0.5 * z, 1.0).log_prob(torch.tensor(-1.9))
            if value > 0:
                log_p = log_p + dist.Normal(0.5 - 0.7 * z, 1.0).log_prob(torch.tensor(-0.9))
            right -= q * float(log_p - torch.tensor(q).log())
        assert float(elbo.differentiable_loss(model, guide)) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("first", [-0.4, 0.4])
def test_a_site_of_the_guide_in_a_branch_on_a_parameter_is_summed(first):
    """Where the other branch has no draw in the guide: its loss was that of one draw, silently."""
    switch = torch.tensor(first, requires_grad=True)

    def model():
        s = pyro.sample("s", dist.Bernoulli(0.4))
        if switch > 0:
            pyro.sample("y", dist.Bernoulli(0.7))
        else:
            pyro.sample("x", dist.Normal(0.5 * float(s), 1.0), obs=torch.tensor(-1.1))

    def guide():
        if switch > 0:
            pyro.sample("y", dist.Bernoulli(0.2))

    q, p = torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7])
    drawn = float((q * (q / p).log()).sum())
    of_values = [dist.Normal(0.5 * s, 1.0).log_prob(torch.tensor(-1.1)).exp() for s in (0.0, 1.0)]
    alone = -float((0.6 * of_values[0] + 0.4 * of_values[1]).log())
    elbo = TraceELBO("enumerate")
    for value in (first, -first, -first, first):
        with torch.no_grad():
            switch.fill_(value)
        assert elbo.loss(model, guide) == pytest.approx(drawn if value > 0 else alone, abs=1e-5)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_a_branch_by_a_number_of_any_library_is_that_of_the_numbers_that_come(draw):
    """A number whose branch has another plan is not drawn anew: each step has the next number of the stream."""

    def model():
        first = draw() < 0.3
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample(
            "x", dist.Normal(z if first else -z, 1.0 if first else 2.0), obs=torch.tensor(5.0 if first else 0.0)
        )

    pyro.set_rng_seed(1)
    expected = [draw() < 0.3 for _ in range(40)]
    pyro.set_rng_seed(1)
    elbo = TraceELBO("enumerate")
    found = [elbo.loss_and_grads(model, lambda: None) > 6.0 for _ in expected]
    assert found == expected

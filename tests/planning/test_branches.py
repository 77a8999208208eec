"""Programs that decide by their arguments: each branch has a plan of its own."""

import itertools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import TraceELBO, collapse
from pyro_discrete.planning.branches import MOST_BRANCHES, Branches

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


def right(x, drawn):
    each = []
    for values in itertools.product([0.0, 1.0], repeat=2):
        w = torch.tensor(values)
        loc = 2 * w.roll(1, -1) if x.sum() > 0 else w
        each.append((dist.Bernoulli(CHANCES).log_prob(w).sum(), dist.Normal(loc, 1.0).log_prob(x).sum()))
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
        assert found == pytest.approx(right(x, drawn), abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_collapsed_program_with_other_data(way):
    collapsed = collapse(pair(WAYS[way], False)[0])
    for x in (BELOW, ABOVE, BELOW):
        found = poutine.trace(collapsed).get_trace(x, bool(x.sum() > 0)).log_prob_sum()
        assert -float(found) == pytest.approx(right(x, False), abs=1e-4)


def test_what_has_been_seen_is_not_planned_again(monkeypatch):
    model, guide = pair(WAYS["if"], False)
    elbo = TraceELBO("enumerate")
    plans = []
    for k in range(6):
        elbo.loss_and_grads(model, guide, (ABOVE if k % 2 else BELOW) * (1 + 0.1 * k), False)
        plans.append(elbo.plan)
    assert plans[0] is plans[2] is plans[4]
    assert plans[1] is plans[3] is plans[5]


def test_a_program_that_decides_by_nothing_is_not_watched():
    def model(x):
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(torch.where(x > 0, w, -w), 1.0).to_event(1), obs=x)

    elbo = TraceELBO("enumerate")
    elbo.loss(model, lambda x: None, ABOVE)
    assert not elbo._branches.watched


def test_numbers_that_are_always_new_end_the_watch_with_a_warning():
    def model(x):
        w = pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(w + x.mean().item(), 1.0).to_event(0), obs=x[0])

    def guide(x):
        pass

    elbo = TraceELBO("enumerate")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for k in range(MOST_BRANCHES + 2):
            elbo.loss(model, guide, torch.tensor([0.3, 0.1 * k]))
    assert [str(w.message) for w in seen if "from here on the last one is believed" in str(w.message)]
    assert isinstance(elbo._branches, Branches)

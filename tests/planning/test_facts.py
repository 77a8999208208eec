"""Every fact that a plan takes from a trial is broken on purpose, and its fallback seen."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.distributions import LinearChain
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteMatchError
from pyro_discrete.planning.facts import FACTS
from pyro_discrete.planning.plan import Jointly, OneByOne, Parallel
from pyro_discrete.programs.pair import Pair

X = torch.tensor([0.4, -1.3, 2.1])


def model_of(read, name="z"):
    """Three bits in a plate, and data about what is read of them."""

    def model(*args):
        with pyro.plate("data", 3):
            z = pyro.sample(name, dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(read(z, *args), 1.0), obs=X)

    return model


def guide(*args):
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))


def guide_of_more(more):
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        if more:
            pyro.sample("w", dist.Bernoulli(0.3))


def break_sites():
    model = model_of(lambda z, more: z + (pyro.sample("w", dist.Bernoulli(0.5)) if more else 0.0))
    elbo = TraceELBO("rloo", num_particles=2)
    elbo.loss_and_grads(model, guide_of_more, False)
    elbo.loss_and_grads(model, guide_of_more, True)
    assert set(elbo.plan.choices) == {"z", "w"}


def break_matched():
    model = model_of(lambda z, more: z)
    elbo = TraceELBO("rloo", num_particles=2)
    elbo.loss_and_grads(model, guide_of_more, False)
    with pytest.raises(SiteMatchError, match="'w'"):
        elbo.loss_and_grads(model, guide_of_more, True)


def break_plate_dims():
    def model(deep):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            if deep:
                with pyro.plate("outer", 2, dim=-2):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=X.expand(2, 3))
            else:
                pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    elbo = TraceELBO("rloo", num_particles=2)
    elbo.loss_and_grads(model, guide, False)
    elbo.loss_and_grads(model, guide, True)
    assert elbo.plan.batch_dims == 2


def break_subsamples():
    sizes, terms = torch.tensor([0.4, 0.6]), dist.Normal(0.0, 1.0).log_prob(X)

    def model():
        n = int(pyro.sample("n", dist.Categorical(sizes)))
        with pyro.plate("data", 1 + n):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=X[: 1 + n])

    right = torch.stack([terms[0], terms[:2].sum()]) + sizes.log()
    elbo = TraceELBO("enumerate")
    assert elbo.loss(model, lambda: None) == pytest.approx(-float(right.logsumexp(0)), abs=1e-5)
    sized = elbo.loss(model, lambda: pyro.sample("n", dist.Categorical(sizes)))
    assert sized == pytest.approx(-float((sizes * terms[:2].cumsum(0)).sum()), abs=1e-5)


def break_rows():
    model = model_of(lambda z: z.mean() + 0 * z)
    elbo = TraceELBO("rloo", num_particles=2)
    with pytest.warns(UserWarning, match="a row's log-probability changes"):
        elbo.loss_and_grads(model, guide)
    assert elbo.plan.path == "sequential"


def break_values():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(1.0 if z.item() else 0.0, 1.0), obs=X[0])

    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(model, lambda: pyro.sample("z", dist.Bernoulli(0.3)))
    assert isinstance(elbo.plan.way, OneByOne)


def break_of_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z.cumsum(-1), 1.0), obs=x)

    def drawn(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.3))

    elbo = TraceELBO("enumerate")
    elbo.loss(model, drawn, X[:1])
    assert elbo.loss(model, drawn, X) == pytest.approx(TraceELBO("enumerate").loss(model, drawn, X))
    assert isinstance(elbo.plan.way, Jointly)


def break_elements():
    model = model_of(lambda z: z + z.roll(1, -1))
    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(model, guide)
    assert isinstance(elbo.plan.way, Jointly)

    def joined_later(later):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) if later else z.new_zeros(1), 1.0), obs=X[0])

    elbo.loss_and_grads(joined_later, guide, False)
    assert isinstance(elbo.plan.way, Parallel)
    elbo.loss_and_grads(joined_later, guide, True)
    assert isinstance(elbo.plan.way, Jointly)


def break_apart():
    def model(shared):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        if shared:
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=X[0])

    def guide(shared):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

    elbo = TraceELBO("indecater")
    elbo.loss_and_grads(model, guide, False)
    assert elbo.plan.rows == 2
    elbo.loss_and_grads(model, guide, True)
    assert elbo.plan.rows == 4


def break_enumerated_dims():
    def model():
        z = [torch.tensor(0.0), torch.tensor(0.0)]
        for t in pyro.markov(range(5)):
            z.append(pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.3 * z[-1] + 0.3 * z[-2])))
            pyro.sample(f"x{t}", dist.Normal(z[-1], 1.0), obs=X[0])

    with pytest.raises(EnumerationError, match="history"):
        TraceELBO().loss(model, lambda: None)


class Held:
    """A setting where no list of what can be watched has it."""

    def __init__(self) -> None:
        self.read = iter([True] * 99).__next__


def break_dependencies():
    held = Held()
    model = model_of(lambda z: z if held.read() else torch.zeros(3))
    elbo = TraceELBO("nvil")
    elbo.loss_and_grads(model, guide)
    assert not elbo.plan.dependencies(Pair(model, guide, (), {})).known
    assert "costs: " in str(elbo.plan)


def break_smoothness():
    model = model_of(lambda z: torch.where(z > 0.5, 1.0, 0.0))
    with pytest.raises(DiscreteInferenceError, match="'z'"):
        TraceELBO("rebar").loss_and_grads(model, guide)
    with pytest.warns(UserWarning, match="'z'"):
        TraceELBO("gumbel_softmax").loss_and_grads(model, guide)


def break_trials():
    def model(n):
        z = pyro.sample("z", dist.Binomial(n, torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    def guided(n):
        pyro.sample("z", dist.Binomial(n, torch.sigmoid(pyro.param("a", torch.tensor(0.3)))))

    elbo = TraceELBO("gumbel_softmax")
    elbo.loss_and_grads(model, guided, 2)
    elbo.loss_and_grads(model, guided, 5)
    assert elbo.plan.met.largest["z"] == 5


def break_counts():
    def counting(x):
        pyro.sample("x", dist.Normal(pyro.sample("n", dist.Poisson(2.5)), 0.1), obs=x)

    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(counting, lambda x: None, torch.tensor(2.0))
    assert elbo.plan.counts.tops["n"] < 30
    assert abs(elbo.loss_and_grads(counting, lambda x: None, torch.tensor(30.0)) - 48.2859) < 1e-3


def break_places():
    table = torch.linspace(-1.0, 1.0, 3)

    def path(x, joined):
        z = pyro.sample("z", LinearChain(torch.zeros(20, 3, 3)))
        mean = table[z].cumsum(-1) if joined else table[z]
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    elbo = TraceELBO("enumerate")
    each = dist.Normal(table, 1.0).log_prob(torch.tensor(0.5)).exp().mean().log()
    found = elbo.loss_and_grads(path, lambda *args: None, torch.full((20,), 0.5), False)
    assert found == pytest.approx(-20 * each.item(), rel=1e-5)
    with pytest.raises(EnumerationError, match=r"'z'.*the term of site 'x' is not known to add up"):
        elbo.loss_and_grads(path, lambda *args: None, torch.full((20,), 0.5), True)


def break_branch():
    def turned(x):
        with pyro.plate("p", 2):
            w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.2, 0.7])))
            pyro.sample("x", dist.Normal(w.flip(-1) if x.sum() > 0 else w, 1.0), obs=x)

    def empty(x):
        pass

    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(turned, empty, torch.tensor([-1.0, -2.0]))
    x = torch.tensor([1.0, 2.0])
    each = [
        dist.Bernoulli(p).log_prob(w) + dist.Normal(w, 1.0).log_prob(x.flip(-1)[i])
        for i, p in enumerate((0.2, 0.7))
        for w in (torch.tensor(0.0), torch.tensor(1.0))
    ]
    right = -float(sum(torch.stack(each[i : i + 2]).logsumexp(0) for i in (0, 2)))
    assert elbo.loss_and_grads(turned, empty, x) == pytest.approx(right, abs=1e-4)


def break_generic():
    def model(x):
        weight = pyro.param("weight", torch.tensor(0.0))
        with pyro.plate("p", 2):
            w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.2, 0.7])))
            pyro.sample("x", dist.Normal(w + weight * (w.flip(-1) - w), 1.0), obs=x)

    def empty(x):
        pass

    elbo, x = TraceELBO("enumerate"), torch.tensor([-1.0, 2.0])
    for weight in (0.0, 1.0):
        pyro.param("weight", torch.tensor(0.0)).data.fill_(weight)
        each = [
            dist.Bernoulli(p).log_prob(w) + dist.Normal(w, 1.0).log_prob((x.flip(-1) if weight else x)[i])
            for i, p in enumerate((0.2, 0.7))
            for w in (torch.tensor(0.0), torch.tensor(1.0))
        ]
        right = -float(sum(torch.stack(each[i : i + 2]).logsumexp(0) for i in (0, 2)))
        assert elbo.loss_and_grads(model, empty, x) == pytest.approx(right, abs=1e-4)


def turned_by(turned, weights, x):
    """Losses of two bits in a plate, which a datum reads as `turned(z, weight)` has it, held against right ones."""

    def model(weight, x):
        with pyro.plate("p", 2):
            w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.2, 0.7])))
            pyro.sample("x", dist.Normal(turned(w, weight), 1.0), obs=x)

    elbo = TraceELBO("enumerate")
    for weight in weights:
        each = [
            dist.Bernoulli(torch.tensor([0.2, 0.7])).log_prob(w).sum()
            + dist.Normal(turned(w, weight), 1.0).log_prob(x).sum()
            for w in torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
        ]
        right = -float(torch.stack(each).logsumexp(0))
        assert elbo.loss_and_grads(model, lambda weight, x: None, weight, x) == pytest.approx(right, abs=1e-4)


def break_operations():
    def unknown(w, weight):
        return w + weight * w.as_strided(w.shape, w.stride()).unfold(-1, 2, 1).sum(-1)

    turned_by(unknown, (torch.zeros(2), torch.tensor([1.0, 0.5])), torch.tensor([-1.0, 2.0]))
    turned_by(lambda w, index: w[..., index], (torch.tensor([0, 1]), torch.tensor([1, 0])), torch.tensor([-1.0, 2.0]))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_fact_that_fails_has_its_fallback(fact):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        globals()[f"break_{fact.name}"]()
    assert fact.rests_on
    assert fact.may_change_with
    assert fact.checked
    assert fact.otherwise

"""Chains under `pyro.markov`: whose dim is whose, what looks back too far, and sites beside a chain."""

import contextlib
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO
from pyro_discrete.errors import EnumerationError
from pyro_discrete.sums.enumerated_sites import SPARE, EnumerationDims
from pyro_discrete.testing import Oracle, exact_loss
from tests.support.exact_sums import agrees, nothing

Y = torch.tensor([0.4, -0.3, 1.2, 0.8, 0.1, 0.3])
TABLE = torch.tensor([[0.2, 0.7], [0.6, 0.9]])
STEPS = {
    "arithmetic": lambda a, b: 0.1 + 0.3 * a + 0.5 * b,
    "where": lambda a, b: torch.where(a.bool(), torch.where(b.bool(), 0.9, 0.6), torch.where(b.bool(), 0.7, 0.2)),
    "look-up": lambda a, b: TABLE[a.long(), b.long()],
}


def chain(step, back, history, length, observe, plate=False):
    values = [torch.zeros(())] * back
    within = pyro.plate("data", 2) if plate else contextlib.nullcontext()
    rate = pyro.param("rate", torch.tensor(0.2))
    for t in pyro.markov(range(length), history=history):
        with within:
            rates = STEPS[step](values[0], values[-1])
            z = pyro.sample(f"z{t}", dist.Bernoulli(rates if observe else 0.6 * rates + rate))
            if observe:
                pyro.sample(f"y{t}", dist.Normal(1.5 * z, 1.0), obs=Y[t].expand(2) if plate else Y[t])
        values = [*values[1:], z]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("plate", [False, True])
def test_a_chain_of_second_order(step, plate):
    def model(history):
        return lambda: chain(step, 2, history, 3, True, plate)

    def guide(history):
        return lambda: chain(step, 2, history, 3, False, plate)

    agrees(model(2), nothing, "auto")
    agrees(model(2), guide(2))
    for estimator in ("enumerate", "rloo"):
        with pytest.raises(EnumerationError, match=r"'z2' depends on .*'z0'.*`history`.*history=2"):
            TraceELBO(estimator, num_particles=2).loss(model(1), nothing)
    with pytest.raises(EnumerationError, match="history"):
        TraceIWELBO(num_particles=2).loss(model(1), nothing)
    with pytest.raises(EnumerationError, match="history"):
        TraceELBO("enumerate").loss(model(2), guide(1))
    exact = float(exact_loss(model(1), nothing))
    with contextlib.suppress(EnumerationError):  # joint value by joint value, or refused
        total = DiscretePosterior(model(1)).marginals()["z2"].probs.float()
        wanted = DiscretePosterior(model(2)).marginals()["z2"].probs.float()
        assert torch.allclose(total, wanted, atol=1e-5)
    assert TraceELBO("enumerate").loss(model(2), nothing) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("back", [5, SPARE, SPARE + 1, 2 * SPARE])
def test_however_far_a_long_chain_looks_back(back):
    with pytest.raises(EnumerationError, match="history"):
        TraceELBO("enumerate").loss(lambda: chain_of_old(back), nothing)


def chain_of_old(back):
    values = [torch.zeros(())] * back
    for t in pyro.markov(range(3 * back + 9)):
        z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.3 * values[-1]))
        pyro.sample(f"y{t}", dist.Normal(z - values[0], 1.0), obs=torch.tensor(0.3))
        values = [*values[1:], z]


def test_the_end_of_a_chain_is_out_of_scope_behind_it():
    def model():
        z = torch.zeros(())
        for t in pyro.markov(range(3)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.3 * z))
        pyro.sample("y", dist.Normal(z, 1.0), obs=Y[0])

    with pytest.raises(EnumerationError, match=r"'y' depends on .*'z2'.*pyro\.markov.*in one that has ended"):
        TraceELBO("enumerate").loss(model, nothing)


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("where", ["before", "inside", "after"])
@pytest.mark.parametrize("length", [2, 3])
def test_a_chain_of_the_guide_beside_sites_of_the_model_alone(own, where, length):
    probs = torch.tensor([0.2, 0.5, 0.3] if own == 1 else [0.4, 0.6])  # up to 2 ** 9 joint values to sum over

    def draw(name):
        return sum(pyro.sample(f"{name}{i}", dist.Categorical(probs)) for i in range(own))

    def model():
        k = draw("k") if where == "before" else 0
        z = torch.zeros(())
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=2 * z - 0.5))
            inside = draw(f"k{t}_") if where == "inside" else 0
            pyro.sample(f"y{t}", dist.Normal(z + inside, 1.0), obs=Y[t])
        if where != "inside":
            k = draw("k") if where == "after" else k
            pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=torch.tensor(1.5))

    def guide():
        z = torch.zeros(())
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.4)) - 0.7 * z))

    exact = Oracle()(model, guide)
    for estimator in ("enumerate", "auto"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert agrees(model, guide, estimator, exact).path == "enumerated"


def test_dims_are_given_again_only_when_others_have_been_free_for_long():
    dims = EnumerationDims(-2)
    outside, _ = dims.give("outside", None)
    given = [dims.give(str(i), {outside})[0] for i in range(200)]
    assert outside not in given
    assert len(set(given)) <= SPARE
    last = {}
    for i, dim in enumerate(given):
        assert i - last.get(dim, -100) > SPARE - 6
        last[dim] = i
    dims.start_program()
    assert dims.give("model", set())[0] not in given


def grid(observe):
    """Rows and columns, each cell given the ones above and to the left."""

    def run():
        rate = pyro.param("rate", torch.tensor(0.2))
        cells = {(i, -1): torch.zeros(()) for i in range(3)} | {(-1, j): torch.zeros(()) for j in range(3)}
        columns = pyro.markov(range(3), keep=True)
        for i in pyro.markov(range(3)):
            for j in columns:
                probs = rate + 0.3 * cells[i - 1, j] + 0.4 * cells[i, j - 1]
                cells[i, j] = pyro.sample(f"z{i}{j}", dist.Bernoulli(probs))
                if observe:
                    pyro.sample(f"y{i}{j}", dist.Normal(1.5 * cells[i, j], 1.0), obs=Y[i + j])

    return run


@pytest.mark.parametrize("guide", [nothing, grid(False)])
def test_a_kept_context_brings_sites_back_that_never_share_a_dim(guide):
    agrees(grid(True), guide)


def looks_back_less(length, backwards):
    """A guide of first order, which may go from the last state to the first."""
    rate, z = pyro.param("rate", torch.tensor(0.2)), torch.zeros(())
    times = [*reversed(range(length))] if backwards else range(length)
    for t in pyro.markov(times):
        z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + rate + 0.3 * z))


def begins_outside(length):
    """A chain whose first state all later sites of the model see."""
    z = pyro.sample("z0", dist.Bernoulli(torch.tensor(0.4)))
    for t in pyro.markov(range(1, length)):
        z = pyro.sample(f"z{t}", dist.Bernoulli(0.2 + 0.5 * z))
        pyro.sample(f"y{t}", dist.Normal(z, 1.0), obs=Y[t % len(Y)])


@pytest.mark.parametrize("compile", [False, "graph"])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("beginning", [False, True])
def test_a_model_that_sees_more_than_its_guide(beginning, backwards, compile):
    """Draws that share a dim in the guide, and that the model sees beside each other, get dims of their own."""

    def model(length):
        return lambda: begins_outside(length) if beginning else chain("arithmetic", 2, 2, length, True)

    agrees(model(4), lambda: looks_back_less(4, backwards), compile=compile)
    if not compile:
        plan = agrees(model(6), lambda: looks_back_less(6, backwards))
        assert "a step runs the guide and the model once" in str(plan)


@pytest.mark.parametrize("beginning", [False, True])
def test_however_long_a_chain_is_whose_guide_sees_less(beginning):
    """Twenty states: the same with a guide that has the history of the model."""

    def model():
        if beginning:
            begins_outside(20)
            return
        z = before = torch.zeros(())
        for t in pyro.markov(range(20), history=2):
            z, before = pyro.sample(f"z{t}", dist.Bernoulli(0.1 + 0.3 * before + 0.5 * z)), z
            pyro.sample(f"y{t}", dist.Normal(1.5 * z, 1.0), obs=Y[t % len(Y)])

    def guide(history):
        rate, z = pyro.param("rate", torch.tensor(0.4)), torch.zeros(())
        for t in pyro.markov(range(20), history=history):
            z = pyro.sample(f"z{t}", dist.Bernoulli(rate + 0.3 * z))

    elbo, other = TraceELBO("enumerate"), TraceELBO("enumerate", compile="graph")
    wanted = TraceELBO("enumerate").loss(model, lambda: guide(20))
    assert elbo.loss(model, lambda: guide(1)) == pytest.approx(wanted, abs=1e-3)
    program = lambda: guide(1)  # noqa: E731
    losses = [other.loss_and_grads(model, program) for _ in range(6)]
    assert losses == pytest.approx([wanted] * 6, abs=1e-3)
    assert other.captures is not None
    assert other.captures.count == 1

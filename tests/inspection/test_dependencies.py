"""A site's cost leaves out what its draw cannot change; where dependence could escape, it leaves out nothing.

The gradients here are exact means: every joint value is forced on the estimator's draws and weighed by its
probability, so nothing alarms by chance.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.diagnostics.exact import exact_gradient
from pyro_discrete.inspection.dependencies import Dependencies, find_dependencies
from pyro_discrete.programs.pair import Pair
from tests.support.escapes import ESCAPES, FOLLOWED, Two
from tests.support.forced import Forced, mean_gradient

FULL = Dependencies(reason="planted")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("channel", [*FOLLOWED, *ESCAPES], ids=lambda c: c.__name__)
def test_the_gradient_is_exact_however_dependence_travels(channel):
    pair = Two(channel)
    elbo = TraceELBO(Forced(), vectorize_particles=False)
    if channel.__name__ != "at_random":
        found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
        expected = exact_gradient(pair.model, pair.guide)
        assert torch.allclose(found, next(iter(expected.values())), rtol=1e-9, atol=1e-12)
    known = find_dependencies(Pair(pair.model, pair.guide, (), {}))
    assert known.known is (channel in FOLLOWED), known.reason
    assert known.influences("a", ("model", "x"))
    assert not known.known or not known.influences("a", ("model", "y"))


@pytest.mark.parametrize("channel", [FOLLOWED[0], ESCAPES[0]], ids=lambda c: c.__name__)
def test_a_planted_analysis_that_misses_a_dependence_is_seen(channel, monkeypatch):
    pair = Two(channel)
    wrong = Dependencies(
        {("guide", "b"): frozenset("b"), ("guide", "a"): frozenset("a"), ("model", "a"): frozenset("a")}
        | {("model", name): frozenset("b") for name in ("b", "x", "y")}
    )
    monkeypatch.setattr("pyro_discrete.inspection.wiring.find_dependencies", lambda pair: wrong)
    found = mean_gradient(TraceELBO(Forced(), vectorize_particles=False), pair.model, pair.guide, ["a", "b"], pair.phi)
    expected = next(iter(exact_gradient(pair.model, pair.guide).values()))
    assert abs(found[0] - expected[0]) > 1e-2
    assert torch.isclose(found[1], expected[1], rtol=1e-9)


def test_the_perturbed_runs_contradict_what_the_trace_of_operations_missed(monkeypatch):
    monkeypatch.setattr(
        "pyro_discrete.inspection.provenance.Provenance.mark", lambda self, tensor, names, axis=None: None
    )
    pair = Two(FOLLOWED[0])
    known = find_dependencies(Pair(pair.model, pair.guide, (), {}))
    assert "draws that they were not seen to use" in known.reason


class Switched(Two):
    """Whether x sees a hangs on something outside of the draws."""

    def __init__(self) -> None:
        super().__init__(self.see)
        self.on = False

    def see(self, a):
        return a * 2 if self.on else torch.zeros_like(a)


def test_a_switch_that_is_thrown_later_is_seen():
    pair = Switched()
    elbo = TraceELBO(Forced(), vectorize_particles=False)
    for state in (False, True, False):
        pair.on = state
        found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
        assert torch.allclose(found, next(iter(exact_gradient(pair.model, pair.guide).values())), rtol=1e-9)
        assert elbo.plan.dependencies(Pair(pair.model, pair.guide, (), {})).influences("a", ("model", "x")) is state


def test_an_argument_that_wires_the_program_is_seen():
    phi = torch.zeros(2, requires_grad=True)

    def model(linked, size):
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(a + b if linked else b, 1.0), obs=torch.tensor(0.0))

    def guide(linked, size):
        pyro.sample("b", dist.Bernoulli(logits=phi[1]))
        pyro.sample("a", dist.Bernoulli(logits=phi[0]))

    elbo = TraceELBO("reinforce")
    for linked in (False, True):
        elbo.loss_and_grads(model, guide, linked, 1)
        known = elbo.plan.dependencies(Pair(model, guide, (linked, 1), {}))
        assert known.known
        assert known.influences("a", ("model", "x")) is linked
    for size in range(2, 12):  # what has been different in every call is not known any more
        known = elbo.plan.dependencies(Pair(model, guide, (False, size), {}))
    assert "changed more than" in known.reason


def test_a_program_that_counts_its_runs_keeps_full_costs_and_runs_once_a_step():
    runs = []
    phi = torch.zeros(2, requires_grad=True)

    def model():
        runs.append(1)
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("a", dist.Bernoulli(logits=phi[0]))
        pyro.sample("b", dist.Bernoulli(logits=phi[1]))

    elbo = TraceELBO("reinforce")
    elbo.loss_and_grads(model, guide)
    assert "counter" in elbo.plan.costs
    runs.clear()
    elbo.loss_and_grads(model, guide)
    assert len(runs) == 1


def test_a_global_site_drawn_after_local_ones_carries_influence_only_if_it_depends_on_them():
    def pair(weight):
        def model():
            with pyro.plate("data", 2):
                z = pyro.sample("z", dist.Bernoulli(0.5))
            h = pyro.sample("h", dist.Bernoulli(0.5))
            with pyro.plate("again", 2):
                pyro.sample("x", dist.Normal(z + h, 1.0), obs=torch.tensor([0.3, 1.2]))

        def guide():
            with pyro.plate("data", 2):
                z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("local", torch.zeros(2))))
            logits = pyro.param("global", torch.zeros(()))
            pyro.sample("h", dist.Bernoulli(logits=logits + z.sum(-1) if weight else logits))

        return model, guide

    for weight in (False, True):
        elbo = TraceELBO("reinforce")
        elbo.loss_and_grads(*pair(weight))
        assert ("summed over plate data" in str(elbo.plan)) is weight


def chain_pair(layers):
    """Independent bits in the guide; a chain in the model, met from the other end, with data at each."""
    logits = torch.linspace(-1, 1, layers).requires_grad_()

    def model():
        above = torch.zeros(())
        for i in reversed(range(layers)):
            above = pyro.sample(f"z{i}", dist.Bernoulli(logits=2 * above - 1))
            pyro.sample(f"x{i}", dist.Normal(above, 1.0), obs=torch.tensor(0.7))

    def guide():
        for i in range(layers):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=logits[i]))

    return model, guide, logits


def variance(elbo, model, guide, logits, steps=150):
    torch.manual_seed(0)
    samples = []
    for _ in range(steps):
        logits.grad = None
        elbo.loss_and_grads(model, guide)
        samples.append(logits.grad.clone())
    return torch.stack(samples).var(0).sum().item()


@pytest.mark.parametrize(("name", "factor"), [("reinforce", 4), ("disarm", 1.5)])
def test_variance_is_saved_on_a_chain(name, factor, monkeypatch):
    """By this factor and more, where so many draws tell variances apart to within a quarter."""
    model, guide, logits = chain_pair(6)
    saved = variance(TraceELBO(name), model, guide, logits)
    monkeypatch.setattr("pyro_discrete.inspection.wiring.find_dependencies", lambda pair: FULL)
    full = variance(TraceELBO(name), model, guide, logits)
    assert full > factor * saved


def test_the_plan_says_what_is_left_out():
    model, guide, _ = chain_pair(3)
    elbo = TraceELBO("reinforce")
    elbo.loss_and_grads(model, guide)
    assert "its signal leaves out 6 of 9 terms" in str(elbo.plan)
    assert "the terms that its draw can change" in str(elbo.plan)


@pytest.mark.parametrize("size", [None, 2, "in order", "given"])
def test_a_loop_over_a_whole_plate_reads_numbers_that_never_change(size):
    def program(observe):
        def run():
            orders = {"given": [2, 0, 1], "in order": [0, 1, 2]}
            given = {"subsample": torch.tensor(orders[size])} if size in orders else {"subsample_size": size}
            for i in pyro.plate("loop", 3, **given):
                with pyro.plate(f"elements_{i}", 2):
                    z = pyro.sample(f"z{i}", dist.Bernoulli(torch.tensor([0.3, 0.6])))
                    if observe:
                        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=torch.tensor([0.2, 0.9]))

        return run

    known = find_dependencies(Pair(program(True), program(False), (), {}))
    assert known.known is (size is None), known.reason
    if known.known:
        assert known.influences("z1", ("model", "x1"))
        assert not known.influences("z1", ("model", "x2"))

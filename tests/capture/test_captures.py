"""The captured steps of an ELBO: what they give, how many there are, copies of them."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.capture.graph import Capture
from pyro_discrete.errors import SettingError
from tests.support.captured_pairs import Pair, captures_of, data, graph_elbo, same_as_eager, steps


def test_differentiable_loss_and_module():
    elbo, pair = graph_elbo(), Pair()
    module = elbo(pair.model, pair.guide)
    for _ in range(4):
        torch.manual_seed(4)
        loss = 2 * module(data())
        pair.encoder.weight.grad = None
        loss.backward()
        got = pair.encoder.weight.grad
        torch.manual_seed(4)
        expected = 2 * TraceELBO("rloo", num_particles=2).differentiable_loss(pair.model, pair.guide, data())
        pair.encoder.weight.grad = None
        expected.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(got, pair.encoder.weight.grad)
    assert captures_of(elbo).count == 1


def test_gradients_add_up():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data(), count=6)
    whole = pair.encoder.weight.grad
    pair.encoder.weight.grad = None
    assert whole is not None
    before = whole.clone()
    torch.manual_seed(0)
    steps(elbo, pair, data(), count=1)
    assert pair.encoder.weight.grad is not None
    once = pair.encoder.weight.grad.clone()
    torch.manual_seed(0)
    steps(elbo, pair, data(), count=1)
    assert torch.equal(pair.encoder.weight.grad, 2 * once)
    assert torch.equal(whole, before)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pyro_discrete.capture.captures.MOST_CAPTURES", 2)
    elbo, pair = graph_elbo(), Pair()
    for size in (3, 4):
        steps(elbo, pair, data(size), count=2)
    with pytest.warns(UserWarning, match="captured already"):
        steps(elbo, pair, data(5), count=2)
    assert captures_of(elbo).count == 2


def test_another_pair_has_graphs_of_its_own():
    elbo, first, second = graph_elbo(), Pair(), Pair(torch.tanh)
    for pair in (first, second, first):
        for _ in range(4):
            assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_copies_and_saved_state():
    pair, plain = Pair(), graph_elbo()
    elbo = TraceELBO("nvil", compile="graph")
    steps(elbo, pair, data())
    steps(plain, pair, data())
    for copied in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(plain))):
        assert captures_of(copied).count == 0
        assert captures_of(copied).mode == "graph"
        steps(copied, pair, data())
        assert captures_of(copied).count == 1
    fresh = TraceELBO("nvil", compile="graph")
    fresh.load_state_dict(elbo.state_dict())
    steps(elbo, pair, data())
    elbo.load_state_dict(fresh.state_dict())  # into a captured one: its graph reads what was loaded
    torch.manual_seed(0)
    expected = fresh.loss_and_grads(pair.model, pair.guide, data())
    torch.manual_seed(0)
    assert elbo.loss_and_grads(pair.model, pair.guide, data()) == expected


def test_says_what_it_holds():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    assert str(elbo.captures) == "1 captured step(s), 1 made so far, run by graph"
    assert TraceELBO("rloo", num_particles=2).captures is None
    with pytest.raises(SettingError, match='"graph"'):
        TraceELBO("rloo", num_particles=2, compile="inductor")  # type: ignore[arg-type]


def test_a_step_of_many_operations_is_not_given_to_inductor():
    elbo, pair = TraceELBO("rloo", num_particles=2, compile=True), Pair()
    captures_of(elbo).most_operations = 10
    with pytest.warns(UserWarning, match="operations, which would take inductor long"):
        steps(elbo, pair, data())
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())
    assert captures_of(elbo).count == 1


def chain(x: torch.Tensor) -> None:
    z = torch.tensor(0.0)
    for t in range(len(x)):
        z = pyro.sample(f"z{t}", dist.Bernoulli(logits=0.5 * z + x[t]))


def chain_guide(x: torch.Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.3))
    for t in range(len(x)):
        pyro.sample(f"z{t}", dist.Bernoulli(logits=slope * x[t]))


def captured_chain(elbo: TraceELBO) -> Capture:
    pyro.clear_param_store()
    for _ in range(4):
        elbo.loss_and_grads(chain, chain_guide, torch.linspace(-1, 1, 30))
    (graph,) = (k.step.graph for kinds in captures_of(elbo)._kinds.values() for k in kinds if k.step)
    return graph


def test_steps_of_few_operations_stay_as_they_are():
    elbo = graph_elbo()
    graph = captured_chain(elbo)
    assert graph.operations < 0.5 * len(graph.graph)
    large = graph_elbo()
    captures_of(large).least_operations = 10**6
    graph = captured_chain(large)
    assert graph.operations == len(graph.graph)
    assert captures_of(copy.deepcopy(large)).least_operations == 10**6


def test_a_graph_that_cannot_be_grouped_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pyro_discrete.capture.grouping.TOLERANCES", {torch.float32: -1.0})
    elbo = graph_elbo()
    with pytest.warns(UserWarning, match="could not be done together"):
        graph = captured_chain(elbo)
    assert graph.operations == len(graph.graph)
    torch.manual_seed(3)
    found = elbo.loss_and_grads(chain, chain_guide, torch.linspace(-1, 1, 30))
    expected = TraceELBO("rloo", num_particles=2)
    expected.loss(chain, chain_guide, torch.linspace(-1, 1, 30))
    torch.manual_seed(3)
    assert found == expected.loss_and_grads(chain, chain_guide, torch.linspace(-1, 1, 30))

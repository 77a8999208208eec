"""Graphs of operations: rewritten, copied, run, and made code of, they give what their operations give."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.operation_graphs import Graph, frozen
from tests.support.grouped_steps import in_order, traced

aten = torch.ops.aten
X = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)


def several(x: Tensor) -> list[Tensor]:
    parts = x.split([1, 2], 1)
    index = torch.tensor([1, 0])
    return [torch.cat([*parts, x[index]], 1), x.sum(dtype=torch.float64), torch.stack([x, x.exp()])]


def test_a_graph_of_torchs_and_back() -> None:
    graph = traced(several, X)
    assert in_order(graph)
    for made in (graph, graph.copied(), graph.module(), Graph.of(graph.module())):
        for found, expected in zip(made(X + 1), several(X + 1), strict=True):
            assert torch.equal(found, expected)
            assert found.dtype is expected.dtype


def test_a_copy_is_rewritten_by_itself() -> None:
    graph = traced(lambda x: [x.exp() + x.exp()], X)
    copied = graph.copied()
    one, other, total = [node for node in copied.nodes if node.op == "call_function"]
    assert total.origin in graph.nodes
    other.replace(one)
    copied.erase(other)
    with copied.before(total):
        tripled = copied.call(aten.mul.Tensor, (one, 3.0), value=one.value)
    total.take((one, tripled))
    assert in_order(copied)
    assert len(copied) == len(graph)
    torch.testing.assert_close(copied(X)[0], 4 * X.exp())
    assert torch.equal(graph(X)[0], X.exp() + X.exp())


def test_a_graph_that_was_run_is_run_as_it_was_rewritten() -> None:
    graph = traced(lambda x: [x.exp().sin()], X)
    assert torch.equal(graph(X)[0], X.exp().sin())
    exp, sin = [node for node in graph.nodes if node.op == "call_function"]
    sin.take((exp.args[0],))
    assert torch.equal(graph(X)[0], X.sin())
    sin.follow({exp.args[0]: exp})
    assert torch.equal(graph(X)[0], X.exp().sin())


def test_what_nobody_uses_is_dropped_but_draws_and_writes() -> None:
    def function(x: Tensor) -> list[Tensor]:
        x.exp().sin()
        torch.rand(2)
        made = x.clone()
        made.add_(1)
        made.cos()
        return [made]

    graph = traced(function, X.clone())
    graph.drop_dead()
    left = [node.target for node in graph.nodes if node.op == "call_function"]
    assert left == [aten.rand.default, aten.clone.default, aten.add_.Tensor]


def test_draws_can_be_given() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.bernoulli(x.sigmoid()) + 1, torch.empty_like(x).exponential_() * 2]

    graph = traced(function, X)
    draws = [node for node in graph.nodes if node.target in (aten.bernoulli.default, aten.exponential_.default)]
    given = dict(zip(draws, (X, X.exp()), strict=True))
    for found, expected in zip(graph(X, instead=given), (X + 1, 2 * X.exp()), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(given[draws[0]], X)


def test_arguments_are_the_same_if_their_types_are() -> None:
    alike = [
        frozen((1, [2, None])),
        frozen((1.0, [2, None])),
        frozen((True, [2, None])),
        frozen((-0.0,)),
        frozen((0.0,)),
    ]
    assert len(set(alike)) == 5
    assert frozen((float("nan"), [1])) == frozen((float("nan"), (1,)))

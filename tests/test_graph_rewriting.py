"""A captured graph does once what the program does several times, and keeps apart what only looks the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete.capture import capture
from pyro_discrete.graph_rewriting import share_repeated


def shared(step: Callable[..., list[Tensor]], *inputs: Tensor) -> tuple[Counter[str], list[Tensor], list[Tensor]]:
    """How often each operation is left, what the graph gives, and what the step gives."""
    torch.manual_seed(0)
    expected = step(*[t.clone() for t in inputs])
    graph = make_fx(step)(*[t.clone() for t in inputs])
    share_repeated(graph)
    graph.graph.lint()
    graph.recompile()
    torch.manual_seed(0)
    found = graph(*[t.clone() for t in inputs])
    return (
        Counter(str(n.target).split(".")[-2:][0] for n in graph.graph.nodes if n.op == "call_function"),
        found,
        expected,
    )


def test_repeated_operations_are_done_once() -> None:
    def step(x: Tensor) -> list[Tensor]:
        tables = [x.log_softmax(-1)[:, i].exp() for i in range(3)]
        return [sum(tables, torch.zeros(4))]

    left, found, expected = shared(step, torch.randn(4, 3))
    assert left["_log_softmax"] == 1
    assert left["exp"] == 3
    assert torch.equal(found[0], expected[0])


def test_random_numbers_stay_apart() -> None:
    def step(x: Tensor) -> list[Tensor]:
        own = [torch.rand_like(x), torch.rand_like(x), torch.bernoulli(x), torch.bernoulli(x)]
        noise = [torch.empty_like(x).exponential_(), torch.empty_like(x).exponential_()]
        return [torch.stack(own + noise) + 0]

    _, found, expected = shared(step, torch.full((50,), 0.5))
    assert torch.equal(found[0], expected[0])


def test_what_is_written_to_stays_apart() -> None:
    def step(x: Tensor, counter: Tensor) -> list[Tensor]:
        view = counter.view(-1)
        before = view + 1
        counter.add_(1)
        after = view + 1
        one, other = x * 2, x * 2
        one[0] = 7.0
        zeros, counted = torch.zeros(3), torch.zeros(3)
        counted.view(1, 3).add_(1)
        return [torch.stack([before.expand(3), after.expand(3), one, other, zeros, counted])]

    _, found, expected = shared(step, torch.randn(3), torch.zeros(()))
    assert torch.equal(found[0], expected[0])


def test_results_stay_apart() -> None:
    def step(x: Tensor) -> list[Tensor]:
        return [x * 2, x * 2, (x * 2).sum()]

    _, found, expected = shared(step, torch.randn(3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len({t.untyped_storage().data_ptr() for t in found}) == 3


def test_arguments_that_are_written_alike_stay_apart() -> None:
    def step(x: Tensor) -> list[Tensor]:
        return [torch.stack([x * 0.0, x * -0.0, x.sum(-1, keepdim=True).expand(3), x.add(x, alpha=2), x.add(x)])]

    _, found, expected = shared(step, torch.tensor([1.0, -2.0, 3.0]))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[0].signbit(), expected[0].signbit())


def test_a_chain_shares_its_tables() -> None:
    weights = torch.randn(3, 3, requires_grad=True)

    def step(x: Tensor) -> list[Tensor]:
        state = x
        for _ in range(5):
            state = state @ weights.softmax(-1)
        return [state.sum().detach(), *torch.autograd.grad(state.sum(), [weights])]

    x = torch.rand(2, 3)
    graph, first = capture(step, [x], [weights])
    names = Counter(str(n.target) for n in graph.graph.graph.nodes)
    assert names["aten._softmax.default"] == 1
    assert all(torch.equal(a, b) for a, b in zip(graph([x]), first, strict=True))


def test_writes_through_views_that_their_schemas_hide() -> None:
    """A product of batches is a view by `_unsafe_view`; `split` and `unbind` give lists of views."""

    def step(x: Tensor, weight: Tensor) -> list[Tensor]:
        changed = x @ weight
        changed.add_(1)
        parts = (weight * 2).split(2, 1)
        parts[0].mul_(3)
        rows = (weight * 2).unbind(0)
        rows[0].zero_()
        unsafe, _ = torch.unsafe_split(weight * 2, 2, 1)
        unsafe.neg_()
        return [torch.stack([changed, x @ weight]), torch.cat([*parts, torch.stack(rows), unsafe, weight * 2], 1)]

    _, found, expected = shared(step, torch.randn(2, 3, 4), torch.randn(4, 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

"""A recorded graph does what the function does, on other inputs too; what cannot be recorded is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete.recording import ValueReadError, is_recorded, record

HELD = torch.linspace(1.0, 2.0, 6).reshape(2, 3)


class Doubled(torch.autograd.Function):
    """Twice the value, with a slope of three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 3 * gradient * x / x


def slopes(x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    value = (Doubled.apply(x).exp() * HELD).sum() + x.pow(2).cumsum(0).logsumexp((0, 1))  # type: ignore[union-attr]
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    return [value.detach(), first.detach(), second]


def writes_to_parts(x: Tensor) -> list[Tensor]:
    made = x.clone()
    made[0] += 1
    made.view(-1)[2:4].mul_(x.flatten()[:2])
    made[made.new_ones(2, dtype=torch.long), 1] = 7.0
    out = torch.empty(2, 3)
    torch.add(x, made, out=out)
    torch._foreach_add_([out, made], 1.0)
    return [made, out]


def several_results(x: Tensor) -> list[Tensor]:
    values, places = x.max(-1)
    left, right = x.split([1, 2], 1)
    return [values, places, left + right, *x.unbind(), *torch.linalg.slogdet(x @ x.T + torch.eye(2))]


def draws(x: Tensor) -> list[Tensor]:
    return [torch.bernoulli(x.sigmoid()), torch.randn_like(x), x.new_empty(3).exponential_(), torch.rand(2)]


def literals(x: Tensor) -> list[Tensor]:
    two = torch.tensor(2.0)
    half = (two / 4).item()
    two.add_(1.0)
    return [x * two, x * half, x + torch.tensor([1.0, 2.0, 3.0])]


def transformed(x: Tensor) -> list[Tensor]:
    return [torch.vmap(lambda row: row.outer(row).sum(0))(x), torch.func.grad(lambda y: y.sin().sum())(x)]


FUNCTIONS: list[Callable[[Tensor], list[Tensor]]] = [
    slopes,
    writes_to_parts,
    several_results,
    draws,
    literals,
    transformed,
]


def run(graph: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return graph(x)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_graph_does_what_the_function_does(function: Callable[[Tensor], list[Tensor]]) -> None:
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    torch.manual_seed(1)
    recorded = record(function, [x])
    torch.manual_seed(1)
    reference = make_fx(function)(x)
    for inputs, outputs in ((x, recorded.outputs), (other, None)):
        torch.manual_seed(1)
        direct = function(inputs)
        torch.manual_seed(1)
        traced = reference(inputs)
        found, as_code = run(recorded.graph, inputs), run(recorded.graph.module(), inputs)
        for one, coded, two, three in zip(found, as_code, direct, traced, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
            assert torch.equal(one, coded)
        if outputs is not None:
            assert all(map(torch.equal, outputs, direct))


def test_nodes_know_what_they_give() -> None:
    graph = record(lambda x: [x.T.exp(), x[:, 1].long()], [torch.randn(2, 3)]).graph
    exp = next(n for n in graph.nodes if n.target is torch.ops.aten.exp.default).value
    assert (exp.shape, exp.stride(), exp.dtype, exp.device.type) == ((3, 2), (1, 3), torch.float32, "cpu")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0, 0] > 0),
        lambda x: torch.equal(x, HELD),
        lambda x: (torch.tensor(1.0) * x[0, 0]).item(),
    ],
)
def test_values_of_inputs_are_not_read(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueReadError):
        record(lambda x: [x + float(read(x))], [torch.randn(2, 3)])


def test_a_literal_is_one_until_it_is_written_to() -> None:
    def function(x: Tensor) -> list[Tensor]:
        literal = torch.tensor(2.0)
        view = literal.view(1)
        assert view.item() == 2.0
        literal.add_(x[0, 0])
        return [x * view.item()]

    with pytest.raises(ValueReadError):
        record(function, [torch.randn(2, 3)])


def test_other_tensors_are_held_and_what_python_reads_of_them_is_noted() -> None:
    limit = torch.tensor(3.0)
    recorded = record(lambda x: [x + HELD if float(limit) > 2 else x], [torch.randn(2, 3)])
    (held,) = [n.target for n in recorded.graph.nodes if n.op == "get_attr"]
    assert held is HELD
    assert [(tensor is limit, version) for tensor, version in recorded.reads] == [(True, limit._version)]


def test_a_held_tensor_that_was_written_to_is_not_read() -> None:
    counter = torch.zeros(())

    def function(x: Tensor) -> list[Tensor]:
        before = counter.item()
        counter.add_(1)
        return [x * before, x * counter.item()]

    with pytest.raises(ValueReadError):
        record(function, [torch.randn(2, 3)])


def test_a_held_tensor_to_which_a_literal_is_added_is_written_to_once() -> None:
    counter, written = torch.zeros(()), []

    def function(x: Tensor) -> list[Tensor]:
        counter.add_(torch.tensor(2.0))
        return [x + counter]

    x = torch.randn(2, 3)
    recorded = record(function, [x], lambda func, args, kwargs: written.append((func, args[0] is counter)))
    assert counter.item() == 2.0
    assert torch.equal(recorded.outputs[0], x + 2.0)
    assert written == [(torch.ops.aten.add_.Tensor, True)]


def test_what_a_graph_does_not_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="UntypedStorage, which no graph holds"):
        record(lambda x: [torch.empty(0).set_(x.untyped_storage())], [torch.randn(2, 3)])


def test_compiled_functions_refuse_to_be_recorded() -> None:
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    with pytest.raises(RuntimeError, match="dynamo-optimized"):
        record(lambda x: [compiled(x)], [torch.randn(2)])
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))


def test_what_is_recorded_is_not_kept_alive() -> None:
    known: list[weakref.ref[Tensor]] = []

    def function(x: Tensor) -> list[Tensor]:
        made = x.exp()
        known.append(weakref.ref(made))
        del made
        assert known[0]() is None
        return [x.sin()]

    record(function, [torch.randn(2)])


def test_a_run_knows_that_it_is_recorded() -> None:
    seen: list[bool] = []

    def function(x: Tensor) -> list[Tensor]:
        seen.append(is_recorded())
        return [x + 1]

    record(function, [torch.randn(2)])
    make_fx(function)(torch.randn(2))
    function(torch.randn(2))
    assert seen == [True, True, False]

"""A captured graph does once what the program does several times, and gathers its sums into fewer operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from pyro_discrete import TraceELBO
from pyro_discrete.capture.graph import capture
from pyro_discrete.capture.rewriting import gather_sums, share_repeated
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.choice import TrainingChoice
from pyro_discrete.steps.step import train_step
from tests.support.grouped_steps import in_order, traced

TABLE = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
INDEX = torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(1))


# Sums are gathered into fewer operations that give the same


def looked_up(table: Tensor) -> Tensor:
    return torch.stack([(table.log_softmax(-1)[INDEX[:, t]].exp() * (t + 1.0)).sum() for t in range(6)]).prod()


def embedded(table: Tensor) -> Tensor:
    return torch.stack([embedding(INDEX[:, t], table.tanh()).square().sum() for t in range(6)]).logsumexp(0)


def scattered(table: Tensor) -> Tensor:
    logits = table.log_softmax(0).T.expand(5, 3, 7)
    picked = [logits.gather(-1, INDEX[:, t].reshape(5, 1, 1).expand(5, 3, 1)).squeeze(-1) for t in range(6)]
    return torch.stack([p.sum().exp() for p in picked]).sum()


def masked(table: Tensor) -> Tensor:
    kept = TABLE > 0
    return torch.stack([(torch.where(kept, table, table.new_zeros(())) * (t + 1)).exp().sum() for t in range(6)]).sum()


def recurrent(table: Tensor) -> Tensor:
    state = torch.ones(2, 3, dtype=table.dtype)
    for _ in range(6):
        state = (state @ table[:3].softmax(-1)).sin()
    return state.sum()


def transposed(table: Tensor) -> Tensor:
    return torch.stack([(table.T.reshape(1, 21) * (t + 1)).sin().sum(-1) for t in range(6)]).sum()


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (looked_up, "index_put"),
        (embedded, "embedding_dense_backward"),
        (scattered, "scatter_add"),
        (masked, "where"),
        (recurrent, "_softmax_backward_data"),
        (transposed, "sum"),
    ],
)
def test_gathered_gradients_are_the_same(function: Callable[[Tensor], Tensor], operation: str) -> None:
    def step(table: Tensor) -> list[Tensor]:
        table = table.detach().requires_grad_()
        return [*torch.autograd.grad(function(table), [table])]

    graph = traced(step, TABLE)
    share_repeated(graph)
    before = Counter(str(n.target).split(".")[-2:][0] for n in graph.nodes if n.op == "call_function")
    expected = graph(TABLE)[0]
    gather_sums(graph)
    assert in_order(graph)
    after = Counter(str(n.target).split(".")[-2:][0] for n in graph.nodes if n.op == "call_function")
    torch.testing.assert_close(graph(TABLE)[0], expected, rtol=1e-12, atol=1e-14)
    assert after[operation] <= before[operation]
    assert after.total() <= before.total()
    if function in (scattered, masked):
        assert (before[operation], after[operation]) == ((6, 1) if function is scattered else (7, 2))


def test_what_is_written_to_is_not_gathered() -> None:
    def step(x: Tensor) -> list[Tensor]:
        state, total = torch.ones_like(x), torch.zeros_like(x)
        for t in range(6):
            total = total + state.view(3).neg() * x
            state.mul_(t + 2)
        return [total, state]

    graph = traced(step, torch.randn(3))
    x = torch.randn(3)
    gather_sums(graph)
    for found, expected in zip(graph(x.clone()), step(x.clone()), strict=True):
        torch.testing.assert_close(found, expected)


def added(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0])


def written_between(x: Tensor) -> list[Tensor]:
    first = x.neg()
    total = first + x
    first.zero_()
    return [added([total, *((x + t).neg() for t in range(6))])]


def zeros_that_are_written_to(x: Tensor) -> list[Tensor]:
    total = torch.zeros_like(x)
    total[0] = 1.0
    return [added([total, *((x + t).neg() for t in range(6))])]


def sums_that_are_written_to(x: Tensor) -> list[Tensor]:
    parts = [(x + t).sin() for t in range(6)]
    total, turned = added(parts), added([p.view(-1, 1) for p in parts])
    turned.mul_(2)
    return [total + 0, turned + 0]


def booleans(x: Tensor) -> list[Tensor]:
    masks = [x > t for t in range(-3, 3)]
    return [added([m * x for m in masks]), added([m.sum() for m in masks])]


def narrow_integers(x: Tensor) -> list[Tensor]:
    counts = [(x.abs() * 50 + 60).to(torch.uint8) + t for t in range(6)]
    return [added([c.sum() for c in counts]), added([c * x for c in counts]), added([c / 3 for c in counts])]


def half_precision(x: Tensor) -> list[Tensor]:
    halves = [(x * (t + 1)).bfloat16() for t in range(6)]
    return [added([h.sum(dtype=torch.float32) for h in halves]), added([h * x for h in halves])]


def scalars(x: Tensor) -> list[Tensor]:
    place = torch.tensor(0)
    return [added([torch.zeros(()).scatter_add(0, place, x[t].clone()) for t in range(5)])]


@pytest.mark.parametrize(
    "step",
    [
        written_between,
        zeros_that_are_written_to,
        sums_that_are_written_to,
        booleans,
        narrow_integers,
        half_precision,
        scalars,
    ],
)
def test_sums_that_must_not_be_gathered(step: Callable[[Tensor], list[Tensor]]) -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(2))
    graph = traced(step, x.clone())
    share_repeated(graph)
    gather_sums(graph)
    assert in_order(graph)
    for found, expected in zip(graph(x.clone()), step(x.clone()), strict=True):
        torch.testing.assert_close(found, expected)


def test_results_of_gathered_sums_have_storages_of_their_own() -> None:
    """Gradients are scaled in place when they are clipped."""

    def step(x: Tensor) -> list[Tensor]:
        parts = [(x + t).sin() for t in range(6)]
        negative = [p.neg() for p in parts]
        wide = [p.sum(0, keepdim=True).expand(3, 4) for p in parts]
        return [added(parts), added(negative), added(negative), added([p.T for p in parts]), added(wide)]

    x = torch.randn(3, 4)
    graph = traced(step, x)
    share_repeated(graph)
    gather_sums(graph)
    found, expected = graph(x), step(x)
    for result in found:
        result.mul_(2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, 2 * b)


def chain(length: int) -> tuple[Callable[..., None], Callable[..., None], list[Tensor]]:
    start = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    transition = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    emission = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = start
            for t in pyro.markov(range(length)):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
                pyro.sample(f"x_{t}", dist.Categorical(logits=emission[z]), obs=x[:, t])
                logits = transition[z]

    return model, lambda x: None, [start, transition, emission]


def test_the_step_of_a_chain() -> None:
    """Steps more do not add to the operations by which tables get their gradients."""
    operations = []
    for length in (32, 64):
        model, guide, parameters = chain(length)
        x = torch.randint(4, (5, length))
        elbo = TraceELBO("enumerate")
        elbo.loss_and_grads(model, guide, x)

        def step(x: Tensor, model=model, guide=guide, parameters=parameters, elbo=elbo) -> list[Tensor]:
            pair = Pair(model, guide, (x,), {})
            choice = TrainingChoice(elbo.plan, elbo.selection, elbo.estimators, elbo.step, read=False)
            known = elbo.plan.dependencies(pair)
            outcome = train_step(elbo.plan, pair, elbo.objective, choice, known, check=lambda outcome: None)
            return [*torch.autograd.grad(torch.as_tensor(outcome.surrogate), parameters)]

        graph, expected = capture(step, [x], parameters)
        rewritten = graph.graph
        before = len(rewritten)
        gather_sums(rewritten)
        found = rewritten(x, *graph.tensors)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        count = Counter(str(n.target).split(".")[-2:][0] for n in rewritten.nodes if n.op == "call_function")
        operations.append((count["index_put"], count["scatter_add"], len(rewritten) / before))
    assert operations[0][:2] == operations[1][:2]
    assert operations[1][2] < 0.75


# What is repeated is done once, and what only looks the same is kept apart


def shared(step: Callable[..., list[Tensor]], *inputs: Tensor) -> tuple[Counter[str], list[Tensor], list[Tensor]]:
    """How often each operation is left, what the graph gives, and what the step gives."""
    torch.manual_seed(0)
    expected = step(*[t.clone() for t in inputs])
    graph = traced(step, *[t.clone() for t in inputs])
    share_repeated(graph)
    assert in_order(graph)
    torch.manual_seed(0)
    found = graph(*[t.clone() for t in inputs])
    return (
        Counter(str(n.target).split(".")[-2:][0] for n in graph.nodes if n.op == "call_function"),
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
    names = Counter(str(n.target) for n in graph.graph.nodes)
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

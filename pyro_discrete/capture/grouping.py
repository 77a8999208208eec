"""Operations of a captured step that are alike and independent, done as one: an unrolled loop at the speed of a scan.

A graph of an unrolled loop repeats each operation for each step. Here those that are alike (the same operation, shapes
and types) and do not need each other are done together, level by level, and the whole is traced anew.

Source: Neubig, Goldberg and Dyer (2017), On-the-fly operation batching in dynamic computation graphs.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete.capture.agenda import groups_of
from pyro_discrete.capture.long_sums import FEWEST, join_sums
from pyro_discrete.capture.rewriting import drop_aliases, share_repeated
from pyro_discrete.capture.simplification import is_random, simplify
from pyro_discrete.capture.stacks import Stacks

__all__ = [
    "GroupingMismatchError",
    "group_alike",
]


LEAST_GAIN = 0.3
"""A graph that would keep more than the rest of its operations is left as it is."""

TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3}
"""How far results may be apart, by the largest of a tensor: sums are added up in another order."""


class GroupingMismatchError(Exception):
    """A graph whose operations were grouped gives something else than the graph itself, with the same draws."""


def group_alike(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule | None:
    """A graph that gives the same with far fewer operations; None if there is none, or if the graph writes to tensors.

    Draws have the same law, as those made together are independent given their arguments. Their stream is the same too,
    on the processor, where their order is kept (unless that would cost operations) and none of them are normal.
    `inputs` are such that the graph takes: it is run on them with the draws of the new one, to compare their results.
    Raises `GroupingMismatchError` if these differ.
    """
    written = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    if not simplify(written):
        return None
    join_sums(written)
    groups = groups_of(written)
    most = (1 - LEAST_GAIN) * len(graph.graph.nodes)
    if sum(len(g) if len(g) < FEWEST else 1 for g in groups) > most:
        return None
    draws = [group for group in groups if is_random(group[0])]
    grouped = _traced(written, groups, inputs)
    if len(grouped.graph.nodes) > most:
        return None
    _compare(graph, grouped, inputs, draws)
    output = next(n for n in grouped.graph.nodes if n.op == "output")
    output.args = (list(output.args[0][: len(output.args[0]) - len(draws)]),)
    grouped.graph.eliminate_dead_code()
    grouped.recompile()
    return grouped


def _traced(graph: fx.GraphModule, groups: Sequence[Sequence[fx.Node]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The groups as a graph. Behind the results it gives what each group of draws has drawn."""
    places = [n for n in graph.graph.nodes if n.op == "placeholder"]
    results = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    held = {n: getattr(graph, str(n.target)) for n in graph.graph.nodes if n.op == "get_attr"}
    literals, alike = set(), defaultdict(list)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.lift_fresh_copy.default and isinstance(held.get(node.args[0]), Tensor):
            literals.add(node)
            value = held[node.args[0]]
            alike[value.shape, value.dtype, value.device].append(node)
    stacked = [(nodes, torch.stack([held[n.args[0]] for n in nodes])) for nodes in alike.values()]
    indices: dict[tuple[int, ...], Tensor] = {}

    def run(*tensors: Tensor) -> list[Tensor]:
        stacks = Stacks({**dict(zip(places, tensors, strict=True)), **held}, indices)
        for nodes, stack in stacked:
            stacks.put(nodes, stack)
        drawn = [stacks.do(group) for group in groups if group[0] not in literals]
        found = [stacks.one(node).clone(memory_format=torch.contiguous_format) for node in results]  # type: ignore
        return [*found, *(d for d in drawn if d is not None)]

    shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
    with torch.no_grad(), shapes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that `vmap` does one by one: then little is gained
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            traced = make_fx(run)(*inputs)
    drop_aliases(traced)
    traced.graph.eliminate_dead_code()
    share_repeated(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _WithDraws(fx.Interpreter):
    """Runs a graph with draws that were made elsewhere."""

    def __init__(self, graph: fx.GraphModule, draws: Iterator[tuple[str, Tensor]]) -> None:
        super().__init__(graph)
        self._draws = dict(draws)

    def run_node(self, n: fx.Node) -> Any:
        return self._draws[n.name] if n.name in self._draws else super().run_node(n)


def _compare(
    graph: fx.GraphModule, grouped: fx.GraphModule, inputs: Sequence[Tensor], draws: Sequence[Sequence[fx.Node]]
) -> None:
    """Raise `GroupingMismatchError` unless both graphs give the same for the same draws."""
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        found = grouped(*inputs)
        results = found[: len(found) - len(draws)]
        drawn = found[len(results) :]
        given = ((n.name, value) for group, values in zip(draws, drawn, strict=True) for n, value in zip(group, values))
        expected = _WithDraws(graph, given).run(*inputs)
    for one, other in zip(results, expected, strict=True):
        tolerance = TOLERANCES.get(other.dtype, 0.05 if other.is_floating_point() else 0.0)
        largest = float(other.abs().max()) if other.is_floating_point() and other.numel() else 0.0
        if one.shape != other.shape or one.dtype is not other.dtype:
            raise GroupingMismatchError(f"{one.dtype} {tuple(one.shape)} for {other.dtype} {tuple(other.shape)}")
        if not torch.allclose(one, other, tolerance, tolerance * largest, equal_nan=True):
            raise GroupingMismatchError(f"values {float((one - other).abs().max()):.3g} apart, of {largest:.3g}")

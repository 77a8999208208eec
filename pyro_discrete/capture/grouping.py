"""Operations of a captured step that are alike and independent, done as one: an unrolled loop at the speed of a scan.

A graph of an unrolled loop repeats each operation for each step. Here those that are alike (the same operation, shapes
and types) and do not need each other are done together, level by level, and the whole is traced anew.

Source: Neubig, Goldberg and Dyer (2017), On-the-fly operation batching in dynamic computation graphs.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_discrete.capture.agenda import groups_of
from pyro_discrete.capture.long_sums import FEWEST, join_sums
from pyro_discrete.capture.rewriting import share_repeated
from pyro_discrete.capture.simplification import is_random, simplify
from pyro_discrete.capture.stacks import Stacks
from pyro_discrete.operation_graphs import Graph, Node
from pyro_discrete.recording import record

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


def group_alike(graph: Graph, inputs: Sequence[Tensor], given: Sequence[Tensor] | None = None) -> Graph | None:
    """A graph that gives the same with far fewer operations; None if there is none, or if the graph writes to tensors.

    Draws have the same law, as those made together are independent given their arguments. Their stream is the same too,
    on the processor, where their order is kept (unless that would cost operations) and none of them are normal.
    `inputs` are such that the graph takes: it is run on them with the draws of the new one, to compare their results.
    Without draws it need not be, where what the program itself gave on these inputs is `given`: that is what the new
    one has to give then. Raises `GroupingMismatchError` if these differ.
    """
    draft = graph.copied()
    try:
        return _grouped(graph, draft, inputs, given)
    finally:
        draft.discard()


def _grouped(graph: Graph, draft: Graph, inputs: Sequence[Tensor], given: Sequence[Tensor] | None) -> Graph | None:
    """As `group_alike` says, by a copy of the graph."""
    if not simplify(draft):
        return None
    join_sums(draft)
    groups = groups_of(draft)
    most = (1 - LEAST_GAIN) * len(graph)
    if sum(len(g) if len(g) < FEWEST else 1 for g in groups) > most:
        return None
    grouped, drawing = _traced(draft, groups, inputs)
    if len(grouped) > most:
        return None
    _compare(graph, grouped, inputs, drawing, None if drawing else given)
    results = grouped.results.args[0]
    grouped.results.take((results[: len(results) - len(drawing)],))
    grouped.drop_dead()
    return grouped


def _traced(graph: Graph, groups: Sequence[Sequence[Node]], inputs: Sequence[Tensor]) -> tuple[Graph, list[list[Node]]]:
    """The groups as a graph. Behind its results it gives what was drawn, by the nodes of a list each."""
    places, results = graph.places, graph.results.args[0]
    held = {n: n.target for n in graph.nodes if n.op == "get_attr"}
    literals, alike = set(), defaultdict(list)
    for node in graph.nodes:
        if node.target is torch.ops.aten.lift_fresh_copy.default and isinstance(held.get(node.args[0]), Tensor):
            literals.add(node)
            value = held[node.args[0]]
            alike[value.shape, value.dtype, value.device].append(node)
    stacked = [(nodes, torch.stack([held[n.args[0]] for n in nodes])) for nodes in alike.values()]
    indices: dict[tuple[int, ...], Tensor] = {}
    drawing: list[list[Node]] = []
    for group in groups:
        if is_random(group[0]):
            drawing += [list(group)] if len(group) >= FEWEST else [[node] for node in group]

    def run(*tensors: Tensor) -> list[Tensor]:
        stacks = Stacks({**dict(zip(places, tensors, strict=True)), **held}, indices)
        for nodes, stack in stacked:
            stacks.put(nodes, stack)
        drawn = [values for group in groups if group[0] not in literals for values in stacks.do(group)]
        found = [stacks.one(node).clone(memory_format=torch.contiguous_format) for node in results]  # type: ignore
        return [*found, *drawn]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that `vmap` does one by one: then little is gained
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            traced = record(run, inputs).graph
    traced.drop_dead()
    share_repeated(traced)
    traced.drop_dead()
    return traced, drawing


def _compare(
    graph: Graph,
    grouped: Graph,
    inputs: Sequence[Tensor],
    drawing: Sequence[Sequence[Node]],
    given: Sequence[Tensor] | None,
) -> None:
    """Raise `GroupingMismatchError` unless the grouped graph gives what is `given`, or the graph for the same draws."""
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        found = grouped(*inputs)
        results, drawn = found[: len(found) - len(drawing)], found[len(found) - len(drawing) :]
        draws: dict[Node, Tensor] = {}
        for nodes, values in zip(drawing, drawn, strict=True):
            made = [node.origin for node in nodes]
            draws.update(zip(made, values.unbind() if len(made) > 1 else [values], strict=True))
        expected = graph(*inputs, instead=draws) if given is None else given
    for one, other in zip(results, expected, strict=True):
        if one.shape != other.shape or one.dtype is not other.dtype:
            raise GroupingMismatchError(f"{one.dtype} {tuple(one.shape)} for {other.dtype} {tuple(other.shape)}")
        floating = other.is_floating_point()
        largest = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) if floating and other.numel() else 0.0
        tolerance = TOLERANCES.get(other.dtype, 0.05 if floating else 0.0)
        if not torch.allclose(one, other, tolerance, tolerance * largest, equal_nan=True):
            raise GroupingMismatchError(f"values {float((one - other).abs().max()):.3g} apart, of {largest:.3g}")

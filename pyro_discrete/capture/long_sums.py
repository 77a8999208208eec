"""Long sums of a captured graph as one operation each: totals, running sums, values added up in their places.

The operations stand for themselves: `Stacks` knows how to do each of them with what it holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.operation_graphs import Graph, Node

__all__ = [
    "FEWEST",
    "LARGEST",
    "accumulated",
    "is_zeros",
    "item",
    "join_sums",
    "placed",
    "running",
    "total",
]


aten: Any = torch.ops.aten


FEWEST = 4
"""So many operations that are alike are worth doing at once."""

LARGEST = 2**18
"""Tensors of more elements are not put beside each other: to copy them would cost what is saved."""

LONG = 12
"""So many values make a sum long; shorter ones stay as they are, as those of many sites are alike."""

MOST_RUNNING = 32
"""So many running sums are looked at, the longest first: each look goes through what depends on it."""


def total(values: Sequence[Tensor]) -> Tensor:
    """The sum of values of one shape."""
    raise NotImplementedError


def placed(values: Sequence[Tensor], sizes: Sequence[int], dim: int, indices: Sequence[int]) -> Tensor:
    """Zeros of these sizes to which each value is added at its index along a dim."""
    raise NotImplementedError


def accumulated(zeros: Tensor, indices: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Zeros to whose first dim each of the values is added at its indices."""
    raise NotImplementedError


def running(values: Sequence[Tensor]) -> Tensor:
    """All sums of the first one, two, ... values; `item` gives one of them."""
    raise NotImplementedError


def item(sums: Tensor, index: int) -> Tensor:
    """One of the running sums."""
    raise NotImplementedError


def join_sums(graph: Graph) -> None:
    """Rewrite the sums of a graph, in place. Its nodes are in no order afterwards."""
    _join_running_sums(graph)
    _join_totals(graph)
    graph.drop_dead()


def is_zeros(node: Any) -> bool:
    """Whether a node is zeros of some shape."""
    return node.target is aten.full.default and node.args[1] == 0


def _is_sum(node: Any) -> bool:
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    if node.args[0] is node.args[1]:  # doubled over and over, it would be a sum of ever more
        return False
    like = node.value
    return (
        like.is_floating_point()
        and like.numel() <= LARGEST
        and all(isinstance(a, Node) and a.value.shape == like.shape and a.value.dtype is like.dtype for a in node.args)
    )


def _join_running_sums(graph: Graph) -> None:
    """Chains of additions whose values in between are used too, unless what is added comes of the chain itself."""
    length: dict[Node, int] = {}
    sums = dict.fromkeys(n for n in graph.nodes if _is_sum(n))
    for node in graph.nodes:
        if node in sums and not all(a in sums for a in node.args):  # a sum of two chains is in neither
            length[node] = 1 + max(length.get(a, 0) for a in node.args)
    taken: set[Node] = set()
    looked_at = 0
    for top in sorted(length, key=lambda n: -length[n]):
        chain: list[Node] = []
        each: Any = top
        while each in length and each not in taken:
            chain.append(each)
            one, other = each.args
            each = one if length.get(one, 0) >= length.get(other, 0) else other
        chain.reverse()
        taken.update(chain)
        if len(chain) < LONG or sum(len(n.users) > 1 for n in chain[:-1]) < FEWEST:
            continue
        values: list[Any] = [*chain[0].args]
        for previous, node in pairwise(chain):
            values.append(node.args[1] if node.args[0] is previous else node.args[0])
        looked_at += 1
        if looked_at > MOST_RUNNING:
            break
        if not _after(chain).isdisjoint(values):
            continue
        with graph.before(chain[-1]):
            sums_of_all = graph.call(running, (values,))
            for index, node in enumerate(chain, 1):
                made = graph.call(item, (sums_of_all, index))
                made.value = node.value
                node.replace(made)
    graph.drop_dead()


def _after(nodes: Sequence[Node]) -> set[Node]:
    """The nodes, and all that depends on them."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _join_totals(graph: Graph) -> None:
    """Chains of additions; among what is added, gradients of parts of one tensor are put in their places at once."""
    sums = dict.fromkeys(n for n in graph.nodes if _is_sum(n))
    for root in list(sums):
        if len(root.users) == 1 and next(iter(root.users)) in sums:
            continue
        addends = _addends(root, sums)
        if len(addends) < LONG:
            continue
        places, puts, rest = defaultdict(list), defaultdict(list), []
        node: Any
        for node in addends:
            if len(node.users) == 1 and node.target is aten.select_backward.default:
                places[tuple(node.args[1]), node.args[2]].append(node)
            elif len(node.users) == 1 and _puts_into_first_dim(node):
                shapes = tuple(node.args[1][0].value.shape), tuple(node.args[2].value.shape)
                puts[node.args[0], shapes, node.args[1][0].value.dtype].append(node)
            else:
                rest.append(node)
        with graph.before(root):
            for (sizes, dim), group in places.items():
                dim = dim % len(sizes)
                indices = [n.args[3] % sizes[dim] for n in group]
                rest.append(_call(graph, placed, ([n.args[0] for n in group], list(sizes), dim, indices), root))
            for (zeros, *_), group in puts.items():
                indices = [n.args[1][0] for n in group]
                rest.append(_call(graph, accumulated, (zeros, indices, [n.args[2] for n in group]), root))
            made = rest[0] if len(rest) == 1 else _call(graph, total, (rest,), root)
        root.replace(made)


def _addends(root: Node, sums: Collection[Node]) -> list[Node]:
    """What a sum is the sum of, as far as nothing else uses the sums in between."""
    found, stack = [], [root]
    while stack:
        each = stack.pop()
        if each in sums and (each is root or len(each.users) == 1):
            stack += reversed(each.args)  # type: ignore[arg-type]
        else:
            found.append(each)
    return found


def _puts_into_first_dim(node: Any) -> bool:
    """Whether a node adds a value to zeros at indices into their first dim, one value for each."""
    if node.target is not aten.index_put.default or node.args[3:] != (True,) or node.kwargs:
        return False
    zeros, indices, values = node.args[:3]
    if len(indices) != 1 or not is_zeros(zeros) or indices[0].value.is_floating_point():
        return False
    if indices[0].value.dtype in (torch.bool, torch.uint8):
        return False
    return values.value.dim() == indices[0].value.dim() + zeros.value.dim() - 1


def _call(graph: Graph, target: Any, args: tuple[Any, ...], like: Node) -> Node:
    return graph.call(target, args, value=like.value)

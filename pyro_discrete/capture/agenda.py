"""An order for a captured graph in which operations that are alike, and do not need each other, come together.

Source: Neubig, Goldberg and Dyer (2017), On-the-fly operation batching in dynamic computation graphs: of the kinds that
are ready, the one goes first whose operations are least deep on average.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.capture.long_sums import FEWEST, LARGEST
from pyro_discrete.capture.simplification import is_random
from pyro_discrete.operation_graphs import Graph, Node

__all__ = [
    "DRAWS",
    "groups_of",
    "shape_of",
]


aten: Any = torch.ops.aten


DRAWS = {
    **dict.fromkeys((aten.rand.default, aten.randn.default, aten.randint.default, aten.randint.low), "sizes"),
    aten.multinomial.default: "rows",
    **dict.fromkeys(
        (
            aten.bernoulli.default,
            aten.bernoulli.p,
            aten.bernoulli.Tensor,
            aten.binomial.default,
            aten.exponential.default,
            aten.geometric.default,
            aten.normal.Tensor_Tensor,
            aten.normal.Tensor_float,
            aten.normal.float_Tensor,
            aten.normal_functional.default,
            aten.poisson.default,
            aten.rand_like.default,
            aten.randn_like.default,
            aten.uniform.default,
            aten._standard_gamma.default,
        ),
        "elements",
    ),
}
"""Draws that can be made together, which are independent given their arguments: by what they draw.

On the processor one number after the other comes from the generator, so that draws made together, in their order, are
those made apart; all but the normal ones, which are made otherwise from sixteen on. A law is the same always.
"""

_ALONE = (
    aten.stack.default,
    aten.cat.default,
    aten.full.default,
    aten.lift_fresh_copy.default,
    aten.native_dropout.default,
    aten.arange.default,
)
"""What is not worth doing together, or is done in a way of its own."""


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's value."""
    return tuple(node.value.shape)


def groups_of(graph: Graph) -> list[list[Node]]:
    """The operations in groups of one kind, the groups in an order in which they can be done.

    Draws keep the order that they have in the graph, unless that would leave more groups.
    """
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    selects = Counter(n.args[:2] for n in nodes if n.target is aten.select.int)
    numbers: dict[Hashable, int] = {}  # of the kinds: what they have in common takes long to hash
    kinds = {n: numbers.setdefault(_signature(n, selects) or n, len(numbers)) for n in nodes}
    waits = {n: {a for a in n.inputs if a.op == "call_function"} for n in nodes}
    depth = _depths(waits)
    found = _agenda(kinds, waits, depth)
    draws = [n for n in nodes if is_random(n)]
    if len(draws) > 1:
        in_order = _in_order(draws, kinds, waits, list(depth))
        depth = _depths(in_order)
        if len(depth) == len(nodes):  # else a draw comes after a sum of what comes after it
            ordered = _agenda(kinds, in_order, depth)
            if len(ordered) <= 1.02 * len(found) + 2:
                return ordered
    return found


_Waits = dict[Node, set[Node]]
"""What each operation waits for."""


def _depths(waits: _Waits) -> dict[Node, int]:
    """How many operations have to come one after another up to each, in an order in which they can be done."""
    users = _users(waits)
    missing = {n: len(before) for n, before in waits.items()}
    free = [n for n in waits if not missing[n]]
    depth: dict[Node, int] = {}
    for node in free:
        depth[node] = 1 + max((depth[a] for a in waits[node]), default=0)
        for user in users[node]:
            missing[user] -= 1
            if not missing[user]:
                free.append(user)
    return depth


def _users(waits: _Waits) -> dict[Node, list[Node]]:
    users: dict[Node, list[Node]] = {n: [] for n in waits}
    for node, before in waits.items():
        for each in before:
            users[each].append(node)
    return users


def _in_order(draws: Sequence[Node], kinds: dict[Node, int], waits: _Waits, order: Sequence[Node]) -> _Waits:
    """What each operation waits for if draws keep their order.

    Draws in a row that are alike, none of which needs another one, are made together once all of them can be made.
    """
    number = {draw: i for i, draw in enumerate(draws)}
    latest: dict[Node, int] = {}  # the last draw, by number, that comes before
    for node in order:
        latest[node] = max((max(latest[a], number.get(a, -1)) for a in waits[node]), default=-1)
    blocks: list[list[Node]] = []
    start = 0
    for i, draw in enumerate(draws):
        if not blocks or kinds[draw] != kinds[blocks[-1][0]] or latest[draw] >= start:
            blocks.append([])
            start = i
        blocks[-1].append(draw)
    found = dict(waits)
    for before, block in zip([[], *blocks], blocks, strict=False):
        needed = set(before).union(*(waits[n] for n in block))
        found.update(dict.fromkeys(block, needed))
    return found


def _agenda(kinds: dict[Node, int], waits: _Waits, depth: dict[Node, int]) -> list[list[Node]]:
    place = {n: i for i, n in enumerate(waits)}
    users = _users(waits)
    left, deep = Counter(kinds.values()), Counter[int]()
    missing = {n: len(before) for n, before in waits.items()}
    ready: dict[int, list[Node]] = defaultdict(list)
    for node in waits:
        deep[kinds[node]] += depth[node]
        if not missing[node]:
            ready[kinds[node]].append(node)
    groups = []
    while ready:
        best = min(ready, key=lambda kind: (deep[kind] / left[kind], place[ready[kind][0]]))
        group = sorted(ready.pop(best), key=place.__getitem__)
        left[best] -= len(group)
        deep[best] -= sum(depth[n] for n in group)
        groups.append(group)
        for node in group:
            for user in users[node]:
                missing[user] -= 1
                if not missing[user]:
                    ready[kinds[user]].append(user)
    return groups


def _signature(node: Node, selects: Mapping[Any, int]) -> Hashable:
    """What operations of one kind have in common; None for one that is done by itself.

    `selects`: how many elements are selected of a tensor along a dim.
    """
    target, value = node.target, node.value
    if not isinstance(target, torch._ops.OpOverload) or not isinstance(value, Tensor) or target in _ALONE:
        return None
    if target.namespace != "aten" or value.layout is not torch.strided:
        return None
    if is_random(node) and target not in DRAWS:
        return None
    if target is aten.select.int and selects[node.args[:2]] >= FEWEST:
        return id(target), *node.args[:2]
    if target in (aten.index.Tensor, aten.index_put.default) and any(i is None for i in node.args[1]):  # type: ignore
        return None
    tensors = [a.value for a in node.inputs]
    if not all(isinstance(t, Tensor) and t.layout is torch.strided for t in tensors) or _promotes_by_dims(tensors):
        return None
    if max(t.numel() for t in [value, *tensors]) > LARGEST:
        return None
    return id(target), _plain(node.args), _plain(sorted(node.kwargs.items())) if node.kwargs else ()


def _promotes_by_dims(tensors: Sequence[Tensor]) -> bool:
    """Whether a result's type goes by which of the tensors have dims: done together, all have."""
    return any(t.dim() == 0 for t in tensors) and any(
        len({t.dtype for t in tensors if t.is_floating_point() == floating and t.dtype is not torch.bool}) > 1
        for floating in (True, False)
    )


def _plain(value: Any) -> Hashable:
    if isinstance(value, Node):
        return shape_of(value), value.value.dtype, value.value.device
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return type(value), repr(value) if isinstance(value, float) else value

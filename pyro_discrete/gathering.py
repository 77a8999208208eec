"""Sums of what the same linear operation gives for many tensors, as the operation's value for their sum.

The backward pass of a table that is looked into a hundred times makes a hundred gradients of the whole table and adds
them up; the operation is done once instead, for the sum of what it was given. Sums are rounded in another order, so
that this is for compiled graphs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx

from pyro_discrete.graph_writes import meets_writes, written_roots

__all__ = ["gather_sums"]

aten = torch.ops.aten
LEAST = 4
"""Fewer values than this are added up as they are."""


def _is_zero(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.target in (aten.new_zeros.default, aten.zeros_like.default, aten.zeros.default):
        return True
    return value.target in (aten.scalar_tensor.default, aten.full.default) and bool(value.args[-1] == 0)


def _always(args: tuple[Any, ...]) -> bool:
    return True


_FIRST = (
    aten.neg.default,
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.gather.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.div.Tensor,
)
LINEAR: dict[Any, tuple[tuple[int, ...], Callable[[tuple[Any, ...]], bool]]] = {
    **dict.fromkeys(_FIRST, ((0,), _always)),
    aten.mul.Tensor: ((0, 1), _always),
    aten.mm.default: ((0, 1), _always),
    aten.where.self: ((1,), lambda args: _is_zero(args[2])),
    aten.index_put.default: ((2,), lambda args: _is_zero(args[0]) and args[3:] == (True,)),
}
"""Operations that are linear in one argument while the others are held: at which places, and under what condition."""
PLACES = sorted({place for places, _ in LINEAR.values() for place in places})


def gather_sums(graph: fx.GraphModule) -> None:
    """Rewrite the sums of a graph, in place."""
    _Gathering(graph.graph, written_roots(graph)).run()
    graph.graph.eliminate_dead_code()
    graph.recompile()


class _Gathering:
    def __init__(self, graph: fx.Graph, written: set[fx.Node]) -> None:
        self.graph, self.written = graph, written
        self.totals: dict[tuple[fx.Node, ...], fx.Node] = {}

    def run(self) -> None:
        results = next(node for node in self.graph.nodes if node.op == "output").all_input_nodes
        for root in [node for node in self.graph.nodes if self._is_sum(node)]:
            if len(root.users) == 1 and self._is_sum(next(iter(root.users))):
                continue
            addends = list(self._addends(root))
            if len(addends) >= LEAST and any(len(group) >= LEAST for _, group in self._groups(addends)):
                with self.graph.inserting_before(root):
                    total = self._total(addends)
                    if root in results:  # whose storage is its own
                        total = self._call(
                            aten.clone.default, (total,), root, {"memory_format": torch.contiguous_format}
                        )
                root.replace_all_uses_with(total)

    def _total(self, addends: list[fx.Node]) -> fx.Node:
        """The sum of the addends, by as few operations as may be; where the graph inserts now."""
        key = tuple(addends)
        if key not in self.totals:
            present = [node for node in addends if not _is_zero(node)] or addends[:1]
            parts = [p for place, group in self._groups(present) for p in self._parts(place, group)]
            total = parts[0]
            for part in parts[1:]:
                total = self._call(aten.add.Tensor, (total, part), total)
            self.totals[key] = total
        return self.totals[key]

    def _parts(self, place: int, group: list[fx.Node]) -> list[fx.Node]:
        if len(group) < LEAST:
            return group
        first = group[0]
        if self._scattered(first):
            zeros, dim = first.args[:2]
            joined = [self.graph.call_function(aten.cat.default, ([n.args[i] for n in group], dim)) for i in (2, 3)]
            return [self._call(aten.scatter_add.default, (zeros, dim, *joined), first)]
        args = list(first.args)
        args[place] = self._total([addend for node in group for addend in self._addends(node.args[place])])
        target = aten.reshape.default if first.target is aten.view.default else first.target
        return [self._call(target, tuple(args), first, first.kwargs)]

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node, kwargs: Any = None) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs or {})
        made.meta["val"] = like.meta["val"]
        return made

    def _groups(self, addends: Iterable[fx.Node]) -> list[tuple[int, list[fx.Node]]]:
        """The addends by the operation that they are of, and the place of the argument in which it is linear."""
        groups: list[tuple[int, list[fx.Node]]] = []
        left = list(addends)
        for place in PLACES:
            by_signature: dict[Any, list[fx.Node]] = {}
            for node in left:
                signature = self._scattered(node) or self._signature(node, place)
                by_signature.setdefault(signature or object(), []).append(node)
            groups += [(place, group) for group in by_signature.values() if len(group) >= LEAST]
            left = [node for group in by_signature.values() if len(group) < LEAST for node in group]
        return groups + [(0, [node]) for node in left]

    def _scattered(self, node: fx.Node) -> str:
        """Where a node adds values up, whatever the places and the values are; empty if it does not."""
        if node.target is not aten.scatter_add.default or not _is_zero(node.args[0]):
            return ""
        if meets_writes(node, self.written):
            return ""
        shapes = [tuple(arg.meta["val"].shape) for arg in node.args[2:] if isinstance(arg, fx.Node)]
        return f"{node.args[:2]} {shapes}" if shapes[0] == shapes[1] != () else ""

    def _signature(self, node: fx.Node, place: int) -> str:
        """What an operation that is linear in its argument at this place has besides it; empty if it is none."""
        if node.target not in LINEAR:
            return ""
        places, condition = LINEAR[node.target]
        if place not in places or not condition(node.args):
            return ""
        inner = node.args[place]
        if not isinstance(inner, fx.Node) or meets_writes(node, self.written):
            return ""
        others = [arg for i, arg in enumerate(node.args) if i != place]
        value = inner.meta["val"]
        if value.dtype is not node.meta["val"].dtype or not value.is_floating_point():
            return ""  # sums of booleans are no counts, those of narrow types less exact
        return f"{node.target} {others} {node.kwargs} {tuple(value.shape)} {value.dtype}"

    def _is_sum(self, node: fx.Node) -> bool:
        if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
            return False
        return all(_alike(arg, node) for arg in node.args) and not meets_writes(node, self.written)

    def _addends(self, node: Any) -> Iterator[fx.Node]:
        """What a sum is the sum of, as far as nothing else uses the sums in between."""
        stack = [node]
        while stack:
            each = stack.pop()
            if self._is_sum(each) and (each is node or len(each.users) == 1):
                stack += reversed(each.args)
            else:
                yield each


def _alike(one: Any, other: Any) -> bool:
    one, other = one.meta["val"], other.meta["val"]
    return one.shape == other.shape and one.dtype == other.dtype

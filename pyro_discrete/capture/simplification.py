"""A captured graph made alike throughout: fewer kinds of operations that do the same, and nothing that holds back."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.capture.rewriting import gather_sums, share_repeated, storage_root, written_roots
from pyro_discrete.operation_graphs import Graph, Node, mapped
from pyro_discrete.operations import kind_of

__all__ = [
    "is_random",
    "simplify",
]


aten: Any = torch.ops.aten


def simplify(graph: Graph) -> bool:
    """Rewrite a graph in place; False where it depends on its own order (of writes), or on how tensors are laid out.

    What it writes to a tensor of its own is made a new tensor, equal literals and repeated work are shared, zeros and
    ones depend on nothing, sums are gathered, and parts of one tensor are selected from it.
    """
    _free_writes(graph)
    if written_roots(graph) or any(n.op == "call_function" and n.target in _BY_LAYOUT for n in graph.nodes):
        return False
    _share_literals(graph)
    share_repeated(graph)
    gather_sums(graph)
    _free_factories(graph)
    _select_parts(graph)
    share_repeated(graph)
    return True


_BY_LAYOUT = (aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default)
"""Operations that look at a tensor's memory, whatever its shape."""


def is_random(node: Node) -> bool:
    """Whether a node's operation draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and kind_of(node.target).random


def _free_writes(graph: Graph) -> None:
    """Let operations that change a tensor which the graph has made, and of which there is no view, make another."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    views: set[Node] = set()
    for node in place:
        if node.op != "call_function":
            continue
        root = storage_root(node)
        if root is None:  # one of several
            views.update(node.inputs)
        elif root is not node and _first_written(node) is not root:
            views.add(root)
    for node in list(place):
        functional = _functional(node)
        if functional is None:
            continue
        changed = node.args[0]
        assert isinstance(changed, Node)
        if changed.op != "call_function" or storage_root(changed) is not changed or changed in views or node in views:
            continue
        with graph.before(node):
            made = graph.call(functional, node.args, node.kwargs)
            made.value, made.origin = _result_of(made), node.origin
            place[made] = place[node]
            if made.value.dtype is not changed.value.dtype:
                made = graph.call(aten._to_copy.default, (made,), {"dtype": changed.value.dtype})
                place[made] = place[node]
        made.value = changed.value
        node.replace(made)
        changed.replace(made, where=lambda user, at=place[node]: place[user] > at)
        graph.erase(node)


def _first_written(node: Any) -> Any:
    """The tensor that operations in a row have changed, the last of them being this node; the node if it is none."""
    while isinstance(node, Node) and _functional(node) is not None:
        node = node.args[0]
    return node


def _functional(node: Node) -> Any:
    """The operation that returns what a node's operation writes to its first argument; None where there is none."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if target.namespace != "aten" or not name.endswith("_") or [a.name for a in written] != ["self"] or not node.args:
        return None
    if not isinstance(node.args[0], Node):
        return None
    packet = getattr(aten, {"normal_": "normal_functional"}.get(name, name[:-1]), None)
    found = getattr(packet, target._overloadname, None)
    if found is None or found._schema.is_mutable or len(found._schema.arguments) != len(target._schema.arguments):
        return None
    return found


def _result_of(node: Node) -> Tensor:
    """What a node's operation gives, without its contents."""

    def as_meta(each: Node) -> Any:
        value = each.value
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value

    return node.target(*mapped(node.args, as_meta), **mapped(node.kwargs, as_meta))  # type: ignore[operator]


def _share_literals(graph: Graph) -> None:
    """One node for all literals that are equal: each would hold back work that is the same for all of them."""
    known: dict[Any, Node] = {}
    for node in graph.nodes:
        if node.target is not aten.lift_fresh_copy.default or node.args[0].op != "get_attr":
            continue
        held = node.args[0].target
        if held.numel() >= 64:
            continue
        contents = held.detach().reshape(-1).contiguous().view(torch.uint8).tolist()
        key = (held.shape, held.dtype, held.device, bytes(contents))
        if known.setdefault(key, node) is not node:
            node.replace(known[key])
            graph.erase(node)


_FILLS = {aten.new_zeros.default: 0, aten.zeros_like.default: 0, aten.zeros.default: 0, aten.ones_like.default: 1}
"""Operations whose results depend on nothing but a shape, and what is in them."""


def _free_factories(graph: Graph) -> None:
    """Let zeros and ones of a shape wait for nothing."""
    first = next((n for n in graph.nodes if n.op == "call_function"), graph.results)
    for node in graph.nodes:
        if node.target not in _FILLS or node.kwargs.get("layout") not in (None, torch.strided):
            continue
        like = node.value
        with graph.before(first):
            made = graph.call(
                aten.full.default,
                (list(like.shape), bool(_FILLS[node.target]) if like.dtype is torch.bool else _FILLS[node.target]),
                {"dtype": like.dtype, "device": like.device},
            )
        made.value = like
        if first is node:
            first = made
        node.replace(made)
        graph.erase(node)


def _select_parts(graph: Graph) -> None:
    """Take what `unbind` gives, and slices of one element, by `select`."""
    node: Any
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[0].target is aten.unbind.int:
            source, *rest = node.args[0].args
            dim = rest[0] if rest else node.args[0].kwargs.get("dim", 0)
            with graph.before(node):
                made = graph.call(aten.select.int, (source, dim, node.args[1]))
        elif node.target is aten.slice.Tensor and not node.kwargs and len(node.args) >= 4:
            source, dim, start, *_ = node.args
            size = source.value.shape[dim]
            if node.value.shape[dim] != 1 or size == 1 or start is None or not -size <= start < size:
                continue
            with graph.before(node):
                part = graph.call(aten.select.int, (source, dim, start % size))
                part.value = node.value.squeeze(dim)
                made = graph.call(aten.unsqueeze.default, (part, dim % node.value.dim()))
        elif node.target is aten.slice_backward.default and node.args[0].value.shape[node.args[2]] == 1:
            value, sizes, dim, start, *_ = node.args
            if sizes[dim] == 1 or not -sizes[dim] <= start < sizes[dim]:
                continue
            with graph.before(node):
                part = graph.call(aten.squeeze.dim, (value, dim))
                part.value = value.value.squeeze(dim)
                made = graph.call(aten.select_backward.default, (part, sizes, dim, start % sizes[dim]))
        else:
            continue
        made.value = node.value
        node.replace(made)
        graph.erase(node)
    graph.drop_dead()

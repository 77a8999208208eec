"""A captured graph made alike throughout: fewer kinds of operations that do the same, and nothing that holds back."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyro_discrete.capture.rewriting import gather_sums, share_repeated, storage_root, written_roots

__all__ = [
    "drawing_name",
    "drop_dead",
    "is_random",
    "simplify",
    "value_of",
]


aten: Any = torch.ops.aten


def simplify(graph: fx.GraphModule) -> bool:
    """Rewrite a graph in place; False where it depends on its own order (of writes), or on how tensors are laid out.

    What it writes to a tensor of its own is made a new tensor, equal literals and repeated work are shared, zeros and
    ones depend on nothing, sums are gathered, and parts of one tensor are selected from it.
    """
    _free_writes(graph)
    if written_roots(graph) or any(node.target in _BY_LAYOUT for node in graph.graph.nodes):
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


def value_of(node: fx.Node) -> Any:
    """What tracing knows of a node's value: a tensor without its contents, or a list of such."""
    return node.meta.get("val")


def is_random(node: fx.Node) -> bool:
    """Whether a node's operation draws random numbers."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def drawing_name(node: fx.Node) -> str:
    """The name that an operation that draws had before the graph was rewritten."""
    return node.meta.get("drawing_name", node.name)


def drop_dead(graph: fx.GraphModule) -> None:
    """As `eliminate_dead_code`, where nodes may stand in any order. Draws stay: they move the random stream."""
    waiting = [n for n in graph.graph.nodes if n.op == "call_function" and not n.users]
    while waiting:
        node = waiting.pop()
        if node.users or node._erased or node.is_impure():
            continue
        before = node.all_input_nodes
        graph.graph.erase_node(node)
        waiting += [n for n in before if n.op == "call_function" and not n.users]


def _free_writes(graph: fx.GraphModule) -> None:
    """Let operations that change a tensor which the graph has made, and of which there is no view, make another."""
    place = {node: i for i, node in enumerate(graph.graph.nodes)}
    views: set[fx.Node] = set()
    for node in place:
        root = storage_root(node)
        if root is None:  # one of several
            views.update(node.all_input_nodes)
        elif root is not node and _first_written(node) is not root:
            views.add(root)
    for node in list(place):
        functional = _functional(node)
        if functional is None:
            continue
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        if changed.op != "call_function" or storage_root(changed) is not changed or changed in views or node in views:
            continue
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(functional, node.args, node.kwargs)
            made.meta.update(val=_result_of(made), drawing_name=node.name)
            place[made] = place[node]
            if made.meta["val"].dtype is not value_of(changed).dtype:
                made = graph.graph.call_function(aten._to_copy.default, (made,), {"dtype": value_of(changed).dtype})
                place[made] = place[node]
        made.meta["val"] = value_of(changed)
        node.replace_all_uses_with(made)
        changed.replace_all_uses_with(made, delete_user_cb=lambda user, at=place[node]: place[user] > at)
        graph.graph.erase_node(node)


def _first_written(node: Any) -> Any:
    """The tensor that operations in a row have changed, the last of them being this node; the node if it is none."""
    while isinstance(node, fx.Node) and _functional(node) is not None:
        node = node.args[0]
    return node


def _functional(node: fx.Node) -> Any:
    """The operation that returns what a node's operation writes to its first argument; None where there is none."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if target.namespace != "aten" or not name.endswith("_") or [a.name for a in written] != ["self"] or not node.args:
        return None
    if not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(aten, {"normal_": "normal_functional"}.get(name, name[:-1]), None)
    found = getattr(packet, target._overloadname, None)
    if found is None or found._schema.is_mutable or len(found._schema.arguments) != len(target._schema.arguments):
        return None
    return found


def _result_of(node: fx.Node) -> Tensor:
    """What a node's operation gives, without its contents."""

    def as_meta(each: fx.Node) -> Any:
        value = value_of(each)
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value

    return node.target(*fx.map_arg(node.args, as_meta), **fx.map_arg(node.kwargs, as_meta))  # type: ignore[operator]


def _share_literals(graph: fx.GraphModule) -> None:
    """One node for all literals that are equal: each would hold back work that is the same for all of them."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.target is not aten.lift_fresh_copy.default or node.args[0].op != "get_attr":
            continue
        held = getattr(graph, node.args[0].target)
        if held.numel() >= 64:
            continue
        contents = held.detach().reshape(-1).contiguous().view(torch.uint8).tolist()
        key = (held.shape, held.dtype, held.device, bytes(contents))
        if known.setdefault(key, node) is not node:
            node.replace_all_uses_with(known[key])
            graph.graph.erase_node(node)


_FILLS = {aten.new_zeros.default: 0, aten.zeros_like.default: 0, aten.zeros.default: 0, aten.ones_like.default: 1}
"""Operations whose results depend on nothing but a shape, and what is in them."""


def _free_factories(graph: fx.GraphModule) -> None:
    """Let zeros and ones of a shape wait for nothing."""
    first = next((n for n in graph.graph.nodes if n.op == "call_function"), None)
    for node in list(graph.graph.nodes):
        if node.target not in _FILLS or node.kwargs.get("layout") not in (None, torch.strided):
            continue
        like = value_of(node)
        with graph.graph.inserting_before(first):
            made = graph.graph.call_function(
                aten.full.default,
                (list(like.shape), bool(_FILLS[node.target]) if like.dtype is torch.bool else _FILLS[node.target]),
                {"dtype": like.dtype, "device": like.device},
            )
        made.meta["val"] = like
        if first is node:
            first = made
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _select_parts(graph: fx.GraphModule) -> None:
    """Take what `unbind` gives, and slices of one element, by `select`."""
    for node in list(graph.graph.nodes):
        if node.target is operator.getitem and node.args[0].target is aten.unbind.int:
            source, *rest = node.args[0].args
            dim = rest[0] if rest else node.args[0].kwargs.get("dim", 0)
            with graph.graph.inserting_before(node):
                made = graph.graph.call_function(aten.select.int, (source, dim, node.args[1]))
        elif node.target is aten.slice.Tensor and not node.kwargs and len(node.args) >= 4:
            source, dim, start, *_ = node.args
            size = value_of(source).shape[dim]
            if value_of(node).shape[dim] != 1 or size == 1 or start is None or not -size <= start < size:
                continue
            with graph.graph.inserting_before(node):
                part = graph.graph.call_function(aten.select.int, (source, dim, start % size))
                part.meta["val"] = value_of(node).squeeze(dim)
                made = graph.graph.call_function(aten.unsqueeze.default, (part, dim % value_of(node).dim()))
        elif node.target is aten.slice_backward.default and value_of(node.args[0]).shape[node.args[2]] == 1:
            value, sizes, dim, start, *_ = node.args
            if sizes[dim] == 1 or not -sizes[dim] <= start < sizes[dim]:
                continue
            with graph.graph.inserting_before(node):
                part = graph.graph.call_function(aten.squeeze.dim, (value, dim))
                part.meta["val"] = value_of(value).squeeze(dim)
                made = graph.graph.call_function(aten.select_backward.default, (part, sizes, dim, start % sizes[dim]))
        else:
            continue
        made.meta["val"] = value_of(node)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
    drop_dead(graph)

"""Which storages a traced graph writes to, through whatever views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

__all__ = ["meets_writes", "storage_root", "written_roots"]

_UNDECLARED_VIEWS = (
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.unsafe_split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default,
    torch.ops.aten.unsafe_chunk.default,
)
"""Views whose schemas promise, on behalf of whoever calls them, that nothing is written to the tensor any more."""


def storage_root(node: fx.Node) -> fx.Node | None:
    """The node whose storage a node's value shares: itself, unless it is a view or an in-place result."""
    while node.op == "call_function":
        if not isinstance(node.target, torch._ops.OpOverload):  # getitem of several results
            node = node.args[0]  # type: ignore[assignment]
            continue
        schema = node.target._schema
        shared = schema.returns[0].alias_info if schema.returns else None
        if node.target in _UNDECLARED_VIEWS:
            source = node.args[0]
        elif shared is None:
            return node
        else:
            source = next((v for a, v in _arguments(node) if _overlaps(a.alias_info, shared)), None)
        if isinstance(source, list | tuple):
            return None
        if not isinstance(source, fx.Node):
            return node
        node = source
    return node


def _overlaps(of_argument: Any, shared: Any) -> bool:
    if of_argument is None:
        return False
    names = shared.before_set | shared.after_set  # a list of views (`split`) is declared without a name
    return not names or bool((of_argument.before_set | of_argument.after_set) & names)


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of a node's operation, each with what it was given."""
    schema = node.target._schema  # type: ignore[union-attr]
    for argument, value in zip(schema.arguments, node.args, strict=False):
        yield argument, value
    for argument in schema.arguments:
        if argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def written_roots(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose storages the graph's operations write to."""
    return {root for node in graph.graph.nodes for root in _writes(node)}


def meets_writes(node: fx.Node, written: set[fx.Node]) -> bool:
    """Whether a node's value, or what it reads, is written to, so that it matters when it is read."""
    roots = {storage_root(each) for each in [node, *node.all_input_nodes]}
    return None in roots or not written.isdisjoint(roots)


def _writes(node: fx.Node) -> Iterator[fx.Node]:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return
    for argument, value in _arguments(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for each in value if isinstance(value, list | tuple) else [value]:
                root = storage_root(each) if isinstance(each, fx.Node) else None
                if root is not None:
                    yield root

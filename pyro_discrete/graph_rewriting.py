"""Rewriting a traced graph: constants become inputs, results get storage of their own, work is shared."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyro_discrete.graph_writes import meets_writes, storage_root, written_roots

__all__ = [
    "NotCapturableError",
    "changed_tensors",
    "declare_writes",
    "drop_aliases",
    "drop_unused",
    "lift_constants",
    "own_outputs",
    "refuse_dynamic_shapes",
    "refuse_overlap",
    "refuse_own_generators",
    "separate_biases",
    "share_repeated",
]


class NotCapturableError(Exception):
    """A step depends on what a graph cannot hold; says on what."""


def lift_constants(graph: fx.GraphModule, taken: int) -> list[Tensor]:
    """Make inputs of the tensors that the graph holds, in place of attributes; a literal's stay what they are."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    assert len(places) == taken
    lifted: dict[int, tuple[fx.Node, Tensor]] = {}
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        tensor = getattr(graph, node.target)
        if id(tensor) not in lifted:
            with graph.graph.inserting_after(places[-1]):
                places.append(graph.graph.placeholder(f"constant_{len(lifted)}"))
            places[-1].meta["val"] = tensor
            lifted[id(tensor)] = (places[-1], tensor)
        node.replace_all_uses_with(lifted[id(tensor)][0])
        graph.graph.erase_node(node)
    return [tensor for _, tensor in lifted.values()]


def declare_writes(graph: fx.GraphModule) -> None:
    """Batch statistics by the operation that says that it writes to them."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.native_batch_norm.default and node.args[3] is not None:
            node.target = torch.ops.aten._native_batch_norm_legit.default


def refuse_own_generators(graph: fx.GraphModule) -> None:
    """Raise `NotCapturableError` where a step draws from a generator that is not torch's: comparisons put that back."""
    held = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    if any(isinstance(value, torch.Generator) for value in held):
        raise NotCapturableError(
            "it draws random numbers from a torch.Generator of its own; leave `generator=` out, and seed torch's"
        )


def refuse_dynamic_shapes(graph: fx.GraphModule) -> None:
    """Raise `NotCapturableError` where a tensor's values decide on another one's shape."""
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.dynamic_output_shape not in node.target.tags:
            continue
        indices = [i for i in node.args[1] if i is not None] if node.target is torch.ops.aten.index.Tensor else []
        if indices and all(_dtype(index, graph) not in (torch.bool, torch.uint8) for index in indices):
            continue
        raise NotCapturableError(
            f"the shape of a tensor depends on values ({node.target.__name__}, or indexing by a mask)"
        )


def _dtype(node: fx.Node, graph: fx.GraphModule) -> torch.dtype:
    return (getattr(graph, str(node.target)) if node.op == "get_attr" else node.meta["val"]).dtype


def own_outputs(graph: fx.GraphModule, outputs: list[Tensor]) -> None:
    """Give each output storage of its own: results are kept and changed in place by optimisers."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    results = list(output.args[0])
    taken: set[int] = set()
    for index, (node, value) in enumerate(zip(results, outputs, strict=True)):
        storage = value.untyped_storage()
        whole = value.is_contiguous() and storage.nbytes() == value.numel() * value.element_size()
        if node.op == "call_function" and whole and storage.data_ptr() not in taken and _makes_storage(node):
            taken.add(storage.data_ptr())
            continue
        with graph.graph.inserting_before(output):
            results[index] = graph.graph.call_function(
                torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
            )
            results[index].meta.update(node.meta)
    output.args = (results,)


def _makes_storage(node: fx.Node) -> bool:
    """Whether what a node gives is no view of an input."""
    root = storage_root(node)
    return root is not None and root.op == "call_function"


_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_SAME_SHAPE = (torch.ops.aten.expand.default, torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def drop_aliases(graph: fx.GraphModule) -> None:
    """Take out operations that give back the tensor that they were given."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        if node.target in _SAME_SHAPE:
            now, before = node.meta["val"], source.meta["val"]
            same = now.shape == before.shape and now.stride() == before.stride()
        else:
            same = node.target in _ALIASES
        if same:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)


def share_repeated(graph: fx.GraphModule) -> None:
    """Let an operation that is done anew on the same tensors give what it gave before.

    A chain's steps have their tables in common, and the backward pass of each step starts with what the others have
    computed too. What is random, written to, read from what is written to, or a result, stays apart.
    """
    nodes = list(graph.graph.nodes)
    written = written_roots(graph)
    apart = {root for node in nodes[-1].all_input_nodes for root in [storage_root(node), node]}
    known: dict[str, fx.Node] = {}
    for node in nodes:
        if not _is_pure(node) or node in apart or storage_root(node) in apart or meets_writes(node, written):
            continue
        first, *others = node.args
        if node.target in _FILLED and isinstance(first, fx.Node):  # what is in it does not matter
            first = _description(first)
        by_one = node.target is torch.ops.aten.mul.Tensor and others == [1.0]
        if by_one and isinstance(first, fx.Node) and _description(first) == _description(node):
            same = first
        else:
            same = known.setdefault(f"{node.target} {first} {others} {node.kwargs}", node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)


_FILLED = (
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.full_like.default,
)


def _description(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value.shape), value.stride(), value.dtype, value.device, value.layout


def _is_pure(node: fx.Node) -> bool:
    """Whether a node always gives the same for the same arguments."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function" and node.target is operator.getitem
    may_differ = {torch.Tag.nondeterministic_seeded, torch.Tag.nondeterministic_bitwise}
    return (
        node.target.namespace == "aten"
        and not node.target._schema.is_mutable
        and may_differ.isdisjoint(node.target.tags)
        and "empty" not in node.target.__name__
    )


def drop_unused(graph: fx.GraphModule, tensors: list[Tensor], inputs: int) -> None:
    """Take out the tensors, of those behind the inputs, that nothing in the graph reads."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"][inputs:]
    for index in reversed(range(len(places))):
        if not places[index].users:
            graph.graph.erase_node(places[index])
            del tensors[index]


def separate_biases(graph: fx.GraphModule) -> None:
    """Add each bias after its matrix product on the processor, where inductor adds it in passing.

    `addmm` writes the bias to every row before the product reads it again. The views keep inductor from joining the
    two anew.
    """
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.addmm.default or node.kwargs or node.meta["val"].device.type != "cpu":
            continue
        bias, *factors = node.args
        shape = list(node.meta["val"].shape)
        if bias.meta["val"].dim() != 1:
            continue
        with graph.graph.inserting_before(node):
            product = graph.graph.call_function(torch.ops.aten.mm.default, tuple(factors))
            product = graph.graph.call_function(torch.ops.aten.view.default, (product, [1, *shape]))
            total = graph.graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
            total = graph.graph.call_function(torch.ops.aten.view.default, (total, shape))
        node.replace_all_uses_with(total)
        graph.graph.erase_node(node)
    graph.recompile()


def changed_tensors(graph: fx.GraphModule, inputs: int) -> list[int]:
    """Positions, behind the inputs, of the tensors that the graph writes to."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    written = written_roots(graph)
    if any(place in written for place in places[:inputs]):
        raise NotCapturableError("it changes one of its arguments in place")
    if any(node.op == "get_attr" for node in written):
        raise NotCapturableError("it changes a constant in place")
    return [index for index, place in enumerate(places[inputs:]) if place in written]


def refuse_overlap(tensors: list[Tensor], changed: list[int]) -> None:
    """Raise `NotCapturableError` where a tensor that is written to shares memory with another one."""
    storages = [t.untyped_storage().data_ptr() for t in tensors]
    for index in changed:
        if storages.count(storages[index]) > 1:
            raise NotCapturableError("it changes a tensor in place that shares its memory with another one")

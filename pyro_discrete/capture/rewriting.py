"""A traced graph made fit to run again: what it cannot hold is refused, what it repeats is done once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.operation_graphs import Graph, Node, frozen
from pyro_discrete.operations import kind_of

__all__ = [
    "NotCapturableError",
    "changed_tensors",
    "declare_writes",
    "drop_unused",
    "gather_sums",
    "lift_constants",
    "meets_writes",
    "own_outputs",
    "own_targets",
    "refuse_dynamic_shapes",
    "refuse_overlap",
    "refuse_own_generators",
    "separate_biases",
    "share_repeated",
    "storage_root",
    "written_roots",
]


_UNDECLARED_VIEWS = (
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.unsafe_split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default,
    torch.ops.aten.unsafe_chunk.default,
)
"""Views whose schemas promise, on behalf of whoever calls them, that nothing is written to the tensor any more."""


def storage_root(node: Node) -> Node | None:
    """The node whose storage a node's value shares: itself, unless it is a view or an in-place result."""
    source: Any
    while node.op == "call_function":
        source = _shared_source(node)
        if source is node or source is None:
            return source
        node = source
    return node


def _shared_source(node: Node) -> Node | None:
    """The argument of an operation whose storage its result shares; the operation if none, None if one of several."""
    known = _SHARED.get(id(node.target))
    if known is None:
        known = _SHARED[id(node.target)] = node.target, _shared_arguments(node.target)
    for place, name in known[1]:
        if place < len(node.args):
            source: Any = node.args[place]
        elif name in node.kwargs:
            source = node.kwargs[name]
        else:
            continue
        return source if type(source) is Node else None if isinstance(source, list | tuple) else node
    return node


_SHARED: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
"""By the `id` of an operation, which takes long to say its hash: what `_shared_arguments` says."""


def _shared_arguments(target: Any) -> list[tuple[int, str]]:
    """The arguments, by place and name, whose memory an operation's result may share."""
    if not isinstance(target, torch._ops.OpOverload) or target in _UNDECLARED_VIEWS:  # getitem of several results
        return [(0, "self")]
    schema = target._schema
    shared = schema.returns[0].alias_info if schema.returns else None
    if shared is None:
        return []
    return [(i, a.name) for i, a in enumerate(schema.arguments) if _overlaps(a.alias_info, shared)]


def _overlaps(of_argument: Any, shared: Any) -> bool:
    if of_argument is None:
        return False
    names = shared.before_set | shared.after_set  # a list of views (`split`) is declared without a name
    return not names or bool((of_argument.before_set | of_argument.after_set) & names)


def written_roots(graph: Graph) -> set[Node]:
    """The nodes whose storages the graph's operations write to."""
    found: set[Node] = set()
    plain: set[int] = set()  # operations that write to nothing
    for node in graph.nodes:
        if id(node.target) not in plain:
            if isinstance(node.target, torch._ops.OpOverload) and kind_of(node.target).writes:
                found.update(_writes(node))
            elif node.op == "call_function":
                plain.add(id(node.target))
    return found


def meets_writes(node: Node, written: set[Node], root_of: Callable[[Node], Node | None] = storage_root) -> bool:
    """Whether a node's value, or what it reads, is written to, so that it matters when it is read.

    `root_of`: the same as `storage_root`, of whoever has them at hand.
    """
    if not written:
        return False
    roots = {root_of(each) for each in [node, *node.inputs]}
    return None in roots or not written.isdisjoint(roots)


def _writes(node: Node) -> Iterator[Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for place, name in kind_of(node.target).writes:
        value = node.args[place] if place < len(node.args) else node.kwargs.get(name)
        for each in value if isinstance(value, list | tuple) else [value]:
            root = storage_root(each) if isinstance(each, Node) else None
            if root is not None:
                yield root


class NotCapturableError(Exception):
    """A step depends on what a graph cannot hold; says on what."""


def lift_constants(graph: Graph, taken: int) -> list[Tensor]:
    """Make inputs of the tensors that the graph holds, in place of attributes; a literal's stay what they are."""
    nodes = graph.nodes
    last = [node for node in nodes if node.op == "placeholder"]
    assert len(last) == taken
    lifted: dict[int, tuple[Node, Tensor]] = {}
    at = last[-1] if last else None
    for node in [n for n in nodes if n.op == "get_attr"]:
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        tensor = node.target
        if id(tensor) not in lifted:
            with graph.before(nodes[0]) if at is None else graph.after(at):
                at = graph.placeholder(tensor)
            lifted[id(tensor)] = (at, tensor)
        node.replace(lifted[id(tensor)][0])
        graph.erase(node)
    return [tensor for _, tensor in lifted.values()]


def declare_writes(graph: Graph) -> None:
    """Batch statistics by the operation that says that it writes to them."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.native_batch_norm.default and node.args[3] is not None:
            node.target = torch.ops.aten._native_batch_norm_legit.default


def refuse_own_generators(graph: Graph) -> None:
    """Raise `NotCapturableError` where a step draws from a generator that is not torch's: comparisons put that back."""
    if any(node.op == "get_attr" and isinstance(node.target, torch.Generator) for node in graph.nodes):
        raise NotCapturableError(
            "it draws random numbers from a torch.Generator of its own; leave `generator=` out, and seed torch's"
        )


def refuse_dynamic_shapes(graph: Graph) -> None:
    """Raise `NotCapturableError` where a tensor's values decide on another one's shape."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not kind_of(node.target).shapes:
            continue
        indices = [i for i in node.args[1] if i is not None] if node.target is torch.ops.aten.index.Tensor else []
        if indices and all(index.value.dtype not in (torch.bool, torch.uint8) for index in indices):
            continue
        raise NotCapturableError(
            f"the shape of a tensor depends on values ({node.target.__name__}, or indexing by a mask)"
        )


def own_outputs(graph: Graph, outputs: list[Tensor]) -> None:
    """Give each output storage of its own: results are kept and changed in place by optimisers."""
    output = graph.results
    results = list(output.args[0])
    taken: set[int] = set()
    for index, (node, value) in enumerate(zip(results, outputs, strict=True)):
        storage = value.untyped_storage()
        whole = value.is_contiguous() and storage.nbytes() == value.numel() * value.element_size()
        if node.op == "call_function" and whole and storage.data_ptr() not in taken and _makes_storage(node):
            taken.add(storage.data_ptr())
            continue
        with graph.before(output):
            results[index] = graph.call(
                torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format}, node.value
            )
    output.take((results,))


def _makes_storage(node: Node) -> bool:
    """Whether what a node gives is no view of an input."""
    root = storage_root(node)
    return root is not None and root.op == "call_function"


_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


_SAME_SHAPE = (torch.ops.aten.expand.default, torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def share_repeated(graph: Graph) -> None:
    """Let an operation that is done anew on the same tensors give what it gave before; leave out what gives them back.

    A chain's steps have their tables in common, and the backward pass of each step starts with what the others have
    computed too. What is random, written to, read from what is written to, or a result, stays apart.
    """
    nodes = graph.nodes
    written = written_roots(graph)
    apart = {root for node in nodes[-1].inputs for root in [storage_root(node), node]}
    known: dict[Any, Node] = {}
    instead: dict[Node, Node] = {}
    roots: dict[Node, Node | None] = {}
    ways: dict[int, tuple[bool, bool, bool]] = {}  # by the id of an operation: whether it is pure, fills, may be none
    multiply = torch.ops.aten.mul.Tensor
    for node in nodes:
        node.follow(instead)
        if node.op != "call_function":
            roots[node] = node
            continue
        source, target = _shared_source(node), node.target
        roots[node] = root = source if source is node or source is None else roots[source]
        way = ways.get(id(target))
        if way is None:
            way = ways[id(target)] = _gives_the_same(target), target in _FILLED, target in _ALIASES + _SAME_SHAPE
        pure, fills, alias = way
        if alias and (target in _ALIASES or _same_place(node.value, node.args[0].value)):
            instead[node] = node.args[0]
            continue
        if not pure or node in apart or root in apart or meets_writes(node, written, roots.__getitem__):
            continue
        first = node.args[0] if node.args else None
        by_one = target is multiply and node.args[1:] == (1.0,)
        if by_one and isinstance(first, Node) and _description(first) == _description(node):
            same = first
        else:
            if fills and isinstance(first, Node):  # what is in it does not matter
                key = _description(first), frozen(node.args[1:])
            else:
                key = frozen(node.args)
            same = known.setdefault((id(target), key, frozen(node.kwargs) if node.kwargs else ()), node)
        if same is not node:
            instead[node] = same
    for node in instead:
        graph.erase(node)


def _same_place(one: Tensor, other: Tensor) -> bool:
    """Whether two views of a tensor are the same one."""
    return one.shape == other.shape and one.stride() == other.stride()


_FILLED = (
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.full_like.default,
)


def _description(node: Node) -> tuple[Any, ...]:
    value = node.value
    return tuple(value.shape), value.stride(), value.dtype, value.device, value.layout


def _gives_the_same(target: Any) -> bool:
    """Whether an operation always gives the same for the same arguments."""
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    may_differ = {torch.Tag.nondeterministic_seeded, torch.Tag.nondeterministic_bitwise}
    return (
        target.namespace == "aten"
        and not target._schema.is_mutable
        and may_differ.isdisjoint(target.tags)
        and "empty" not in target.__name__
    )


def drop_unused(graph: Graph, tensors: list[Tensor], inputs: int) -> None:
    """Take out the tensors, of those behind the inputs, that nothing in the graph reads."""
    places = graph.places[inputs:]
    for index in reversed(range(len(places))):
        if not places[index].users:
            graph.erase(places[index])
            del tensors[index]


def separate_biases(graph: Graph) -> None:
    """Add each bias after its matrix product on the processor, where inductor adds it in passing.

    `addmm` writes the bias to every row before the product reads it again. The views keep inductor from joining the
    two anew.
    """
    for node in graph.nodes:
        if node.target is not torch.ops.aten.addmm.default or node.kwargs or node.value.device.type != "cpu":
            continue
        bias, *factors = node.args
        shape = list(node.value.shape)
        if bias.value.dim() != 1:
            continue
        with graph.before(node):
            product = graph.call(torch.ops.aten.mm.default, tuple(factors))
            product = graph.call(torch.ops.aten.view.default, (product, [1, *shape]))
            total = graph.call(torch.ops.aten.add.Tensor, (product, bias))
            total = graph.call(torch.ops.aten.view.default, (total, shape), value=node.value)
        node.replace(total)
        graph.erase(node)


_INTO_A_COPY = (
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_add.default,
    torch.ops.aten.index_copy.default,
    torch.ops.aten.scatter.src,
    torch.ops.aten.scatter_add.default,
)


def own_targets(graph: Graph) -> None:
    """Have values put into memory of their own where they are put into a tensor that was expanded.

    Inductor (torch 2.13) takes the copy of it that these operations change for expanded too, and so adds up, for all of
    a dim, what belongs to one place of it. `tests/capture/test_compiled_step.py` fails once it no longer does.
    """
    for node in graph.nodes:
        if node.target not in _INTO_A_COPY:
            continue
        value = node.args[0].value
        if not any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
            continue
        with graph.before(node):
            own = graph.call(
                torch.ops.aten.clone.default,
                (node.args[0],),
                {"memory_format": torch.contiguous_format},
                value.contiguous(),
            )
        node.take((own, *node.args[1:]))


def changed_tensors(graph: Graph, inputs: int) -> list[int]:
    """Positions, behind the inputs, of the tensors that the graph writes to."""
    places = graph.places
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


aten: Any = torch.ops.aten


_ADD = aten.add.Tensor

LEAST = 4
"""Fewer values than this are added up as they are."""


def _is_zero(value: Any) -> bool:
    if not isinstance(value, Node):
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


_LINEAR = {id(target): way for target, way in LINEAR.items()}
"""By `id`: operations take long to say their hash."""

PLACES = sorted({place for places, _ in LINEAR.values() for place in places})


def gather_sums(graph: Graph) -> None:
    """Rewrite the sums of a graph, in place."""
    _Gathering(graph, written_roots(graph)).run()
    graph.drop_dead()


class _Gathering:
    def __init__(self, graph: Graph, written: set[Node]) -> None:
        self.graph, self.written = graph, written
        self.totals: dict[tuple[Node, ...], Node] = {}

    def run(self) -> None:
        results = self.graph.results.inputs
        for root in [node for node in self.graph.nodes if self._is_sum(node)]:
            if len(root.users) == 1 and self._is_sum(next(iter(root.users))):
                continue
            addends = list(self._addends(root))
            if len(addends) < LEAST:
                continue
            groups = self._groups(addends)
            if any(len(group) >= LEAST for _, group in groups):
                with self.graph.before(root):
                    total = self._total(addends, groups)
                    if root in results:  # whose storage is its own
                        total = self._call(
                            aten.clone.default, (total,), root, {"memory_format": torch.contiguous_format}
                        )
                root.replace(total)

    def _total(self, addends: list[Node], groups: list[tuple[int, list[Node]]] | None = None) -> Node:
        """The sum of the addends, by as few operations as may be; where the graph inserts now.

        `groups`: those of the addends, where they are known.
        """
        key = tuple(addends)
        if key not in self.totals:
            present = [node for node in addends if not _is_zero(node)] or addends[:1]
            if groups is None or len(present) < len(addends):
                groups = self._groups(present)
            parts = [p for place, group in groups for p in self._parts(place, group)]
            total = parts[0]
            for part in parts[1:]:
                total = self._call(aten.add.Tensor, (total, part), total)
            self.totals[key] = total
        return self.totals[key]

    def _parts(self, place: int, group: list[Node]) -> list[Node]:
        if len(group) < LEAST:
            return group
        first = group[0]
        if self._scattered(first):
            zeros, dim = first.args[:2]
            joined = []
            for i in (2, 3):
                parts: list[Any] = [n.args[i] for n in group]
                like = parts[0].value
                shape = list(like.shape)
                shape[dim] *= len(group)  # type: ignore[index]
                joined.append(self.graph.call(aten.cat.default, (parts, dim), value=like.new_empty(shape)))
            return [self._call(aten.scatter_add.default, (zeros, dim, *joined), first)]
        args = list(first.args)
        args[place] = self._total([addend for node in group for addend in self._addends(node.args[place])])
        target = aten.reshape.default if first.target is aten.view.default else first.target
        return [self._call(target, tuple(args), first, first.kwargs)]

    def _call(self, target: Any, args: tuple[Any, ...], like: Node, kwargs: Any = None) -> Node:
        return self.graph.call(target, args, kwargs, like.value)

    def _groups(self, addends: Iterable[Node]) -> list[tuple[int, list[Node]]]:
        """The addends by the operation that they are of, and the place of the argument in which it is linear."""
        groups: list[tuple[int, list[Node]]] = []
        left = list(addends)
        for place in PLACES:
            by_signature: dict[Any, list[Node]] = {}
            for node in left:
                signature = self._scattered(node) or self._signature(node, place)
                by_signature.setdefault(signature or object(), []).append(node)
            groups += [(place, group) for group in by_signature.values() if len(group) >= LEAST]
            left = [node for group in by_signature.values() if len(group) < LEAST for node in group]
        return groups + [(0, [node]) for node in left]

    def _scattered(self, node: Node) -> Any:
        """Where a node adds values up, whatever the places and the values are; None if it does not."""
        if node.target is not aten.scatter_add.default or not _is_zero(node.args[0]):
            return None
        if meets_writes(node, self.written):
            return None
        shapes = [tuple(arg.value.shape) for arg in node.args[2:] if isinstance(arg, Node)]
        return (frozen(node.args[:2]), *shapes) if shapes[0] == shapes[1] != () else None

    def _signature(self, node: Node, place: int) -> Any:
        """What an operation that is linear in its argument at this place has besides it; None if it is none."""
        linear = _LINEAR.get(id(node.target))
        if linear is None or place not in linear[0] or not linear[1](node.args):
            return None
        inner = node.args[place]
        if not isinstance(inner, Node) or meets_writes(node, self.written):
            return None
        others = [arg for i, arg in enumerate(node.args) if i != place]
        value = inner.value
        if value.dtype is not node.value.dtype or not value.is_floating_point():
            return None  # sums of booleans are no counts, those of narrow types less exact
        kwargs = frozen(node.kwargs) if node.kwargs else ()
        return id(node.target), frozen(others), kwargs, tuple(value.shape), value.dtype

    def _is_sum(self, node: Node) -> bool:
        if node.target is not _ADD or node.kwargs:
            return False
        if len(node.inputs) != len(node.args):  # a number; or doubled over and over, it would be a sum of ever more
            return False
        return all(_alike(arg, node) for arg in node.args) and not meets_writes(node, self.written)

    def _addends(self, node: Any) -> Iterator[Node]:
        """What a sum is the sum of, as far as nothing else uses the sums in between."""
        stack = [node]
        while stack:
            each = stack.pop()
            if self._is_sum(each) and (each is node or len(each.users) == 1):
                stack += reversed(each.args)
            else:
                yield each


def _alike(one: Any, other: Any) -> bool:
    one, other = one.value, other.value
    return one.shape == other.shape and one.dtype == other.dtype

"""Values of a captured graph's operations, those of operations done together as places in one tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pyro_discrete.capture.agenda import DRAWS, shape_of
from pyro_discrete.capture.long_sums import FEWEST, accumulated, is_zeros, item, placed, running, total
from pyro_discrete.capture.simplification import is_random
from pyro_discrete.operation_graphs import Node, mapped, nodes_in

__all__ = [
    "Stacks",
]


aten: Any = torch.ops.aten


_BY_SHAPE: dict[Any, Any] = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
"""Views that need a layout which values out of a stack may not have."""


class Stacks:
    """What operations give, each a tensor of its own or a place along the first dim of one that many share.

    A stack of values that are a stack already is that one, a slice of it, or an index of it. All of it is made by
    tensor operations, so that it can be traced.
    """

    def __init__(self, given: Mapping[Node, Tensor], indices: dict[tuple[int, ...], Tensor]) -> None:
        self._alone = dict(given)
        self._indices = indices  # kept from trace to trace, and made outside of it: constants
        self._stacks: list[Tensor] = []
        self._at: dict[Node, tuple[int, int]] = {}
        self._gathered: dict[tuple[Node, ...], Tensor] = {}

    def put(self, nodes: Sequence[Node], stack: Tensor, places: Sequence[int] | None = None) -> None:
        """The nodes' values are these places of a stack, by default all of them in order."""
        self._stacks.append(stack)
        for node, place in zip(nodes, places or range(len(nodes)), strict=True):
            self._at[node] = (len(self._stacks) - 1, place)

    def one(self, node: Node) -> Tensor:
        """A node's value."""
        if node not in self._alone:
            stack, place = self._at[node]
            self._alone[node] = self._stacks[stack].select(0, place)
        return self._alone[node]

    def gathered(self, nodes: Sequence[Node]) -> Tensor:
        """The values of nodes, `[n, ...]`."""
        key = tuple(nodes)
        if key not in self._gathered:
            loose = [n for n in dict.fromkeys(nodes) if n not in self._at]
            if loose:
                self.put(loose, torch.stack([self.one(n) for n in loose]))
            self._gathered[key] = self._joined([self._at[n] for n in nodes])
        return self._gathered[key]

    def _joined(self, places: Sequence[tuple[int, int]]) -> Tensor:
        runs = [(stack, [i for _, i in run]) for stack, run in groupby(places, key=lambda at: at[0])]
        used = dict.fromkeys(stack for stack, _ in runs)
        if len(runs) == 1:
            return self._part(*runs[0])
        if len(runs) <= 2 * len(used):
            return torch.cat([self._part(*run) for run in runs])
        own: dict[int, list[int]] = {s: sorted({i for stack, i in places if stack == s}) for s in used}
        starts, begin = {}, 0
        for stack, inside in own.items():  # each stack's used places, and then their order
            starts[stack] = {place: begin + k for k, place in enumerate(inside)}
            begin += len(inside)
        joined = torch.cat([self._part(stack, inside) for stack, inside in own.items()])
        return joined.index_select(0, self._index([starts[stack][place] for stack, place in places], joined))

    def _part(self, stack: int, places: Sequence[int]) -> Tensor:
        """Those places of a stack: the stack, a slice or an index."""
        whole, count = self._stacks[stack], len(places)
        step = places[1] - places[0] if count > 1 else 1
        if step == 0 or any(b - a != step for a, b in pairwise(places)):
            return whole.index_select(0, self._index(places, whole))
        if step > 0:
            return whole if count == len(whole) else whole[places[0] : places[-1] + 1 : step]
        return whole[places[-1] : places[0] + 1 : -step].flip(0)

    def _index(self, places: Sequence[int], like: Tensor) -> Tensor:
        key = tuple(places)
        if key not in self._indices:
            with _disable_current_modes():
                self._indices[key] = torch.tensor(key, device=like.device)
        return self._indices[key]

    def do(self, group: Sequence[Node]) -> list[Tensor]:
        """Do the operations of a group, together if they are `FEWEST` at least.

        Where they are draws, gives what was drawn: by each, or for all of them together.
        """
        first = group[0]
        random = is_random(first)
        if len(group) < FEWEST:
            for node in group:
                self._do_alone(node)
            return [self.one(node) for node in group] if random else []
        if first.target is aten.select.int:
            source, dim = first.args[:2]
            if all(n.args[:2] == (source, dim) for n in group):
                size = shape_of(source)[dim]  # type: ignore[arg-type, index]
                self.put(group, self.one(source).movedim(dim, 0), [n.args[2] % size for n in group])  # type: ignore
                return []
        if not random:
            group = self._ordered(group)
        value = self._drawn(group) if random else self._done(group)
        if value.dtype is not first.value.dtype:
            raise TypeError(f"{first.target} done together gives {value.dtype}, by itself {first.value.dtype}")
        if value.shape == first.value.shape and not random:  # the same for all
            self._alone.update(dict.fromkeys(group, value))
        elif value.shape == (len(group), *shape_of(first)):
            self.put(group, value)
        else:
            raise TypeError(f"{first.target} done together gives {value.shape}, by itself {shape_of(first)}")
        return [value] if random else []

    # ------------------------------------------------------------------ one by one

    def _do_alone(self, node: Node) -> None:
        target: Any = node.target
        if target is running:
            self._stacks.append(self.gathered(node.args[0]).cumsum(0))  # type: ignore[arg-type]
            self._at[node] = (len(self._stacks) - 1, 0)
        elif target is item:
            sums, index = node.args
            self._at[node] = (self._at[sums][0], index)  # type: ignore[index, assignment]
        elif target is total:
            self._alone[node] = self._total(*node.args)  # type: ignore[arg-type]
        elif target is placed:
            self._alone[node] = self._placed(*node.args)  # type: ignore[arg-type]
        elif target is accumulated:
            self._alone[node] = self._accumulated(*node.args)  # type: ignore[arg-type]
        elif target in (aten.stack.default, aten.cat.default) and self._stacked_alike(node.args[0]):
            dim = (node.args[1] if len(node.args) > 1 else 0) % node.value.dim()  # type: ignore[operator]
            value = self.gathered(node.args[0]).movedim(0, dim)  # type: ignore[arg-type]
            self._alone[node] = value if target is aten.stack.default else value.flatten(dim, dim + 1)
        else:
            target = _BY_SHAPE.get(target, target)
            one = self._in_rows if is_random(node) else self.one
            self._alone[node] = target(*mapped(node.args, one), **mapped(node.kwargs, one))

    def _in_rows(self, node: Node) -> Tensor:
        """A node's value in the layout in which draws are made one after the other."""
        value = self.one(node)
        return value.contiguous() if node.value.is_contiguous() else value

    def _stacked_alike(self, nodes: Any) -> bool:
        return len(nodes) >= FEWEST and len({(shape_of(n), n.value.dtype) for n in nodes}) == 1

    def _total(self, nodes: Sequence[Node]) -> Tensor:
        by_stack: dict[int, list[Node]] = defaultdict(list)
        for node in nodes:
            by_stack[self._at[node][0] if node in self._at else -1].append(node)
        loose = [self.one(n) for n in by_stack.pop(-1, ())]
        parts = []
        for group in by_stack.values():
            if len(group) == 1:
                loose.append(self.one(group[0]))
            else:
                parts.append(self.gathered(sorted(group, key=self._at.__getitem__)).sum(0))
        if len(loose) >= FEWEST:
            loose = [torch.stack(loose).sum(0)]
        result, *others = parts + loose
        for other in others:
            result = result + other
        return result

    def _placed(self, nodes: Sequence[Node], sizes: Sequence[int], dim: int, indices: Sequence[int]) -> Tensor:
        order = sorted(range(len(nodes)), key=lambda k: indices[k])
        values = self.gathered([nodes[k] for k in order]).movedim(0, dim)
        places = [indices[k] for k in order]
        if places == list(range(sizes[dim])):
            return values
        return values.new_zeros(sizes).index_add(dim, self._index(places, values), values)

    def _accumulated(self, zeros: Node, indices: Sequence[Node], values: Sequence[Node]) -> Tensor:
        order = sorted(range(len(values)), key=lambda k: self._at.get(values[k], (-1, k)))
        indices, values = [indices[k] for k in order], [values[k] for k in order]
        if len(set(indices)) == 1:
            at = self.one(indices[0]).expand(len(values), *shape_of(indices[0]))
        else:
            at = self.gathered(indices)
        return aten.index_put.default(self.one(zeros), [at], self.gathered(values), True)

    # ------------------------------------------------------------------ together

    def _ordered(self, group: Sequence[Node]) -> Sequence[Node]:
        """The operations so that most of their arguments are whole stacks or slices of such."""
        by_argument = list(zip(*(n.inputs for n in group), strict=False))
        if len({len(n.inputs) for n in group}) > 1:
            return group
        best, best_cost = group, None
        for arguments in by_argument:
            if len(set(arguments)) < len(group):
                continue
            ranked = sorted(range(len(group)), key=lambda k: (self._at.get(arguments[k], (-1, 0)), k))
            cost = sum(self._cost([column[k] for k in ranked]) for column in by_argument)
            if best_cost is None or cost < best_cost:
                best, best_cost = [group[k] for k in ranked], cost
        return best

    def _cost(self, nodes: Sequence[Node]) -> int:
        """How much work it is to have these values in one tensor."""
        if len(set(nodes)) == 1:
            return 0
        if any(n not in self._at for n in nodes) or len({self._at[n][0] for n in nodes}) > 1:
            return 3
        steps = {self._at[b][1] - self._at[a][1] for a, b in pairwise(nodes)}
        return 0 if len(steps) == 1 and min(steps) > 0 else 2

    def _done(self, group: Sequence[Node]) -> Tensor:
        """What the operations give, `[n, ...]`; one of them, if all have the same arguments."""
        first = group[0]
        tensors, dims = self._arguments(group)
        target = _BY_SHAPE.get(first.target, first.target)

        def call(*values: Tensor) -> Tensor:
            given = iter(values)
            args = mapped(first.args, lambda _: next(given))
            return target(*args, **mapped(first.kwargs, lambda _: next(given)))

        if all(dim is None for dim in dims):
            return call(*tensors)
        rank = first.value.dim()
        pointwise = torch.Tag.pointwise in first.target.tags  # type: ignore[union-attr]
        if pointwise and all(dim is None or t.dim() == rank + 1 for dim, t in zip(dims, tensors, strict=True)):
            return call(*tensors)
        if first.target in (aten.index_put.default, aten.scatter_add.default) and dims[0] is None:
            # `vmap` would expand it
            zeros = is_zeros(first.inputs[0])
            whole = (len(group), *tensors[0].shape)
            tensors[0] = tensors[0].new_zeros(whole) if zeros else tensors[0].expand(whole).contiguous()
            dims[0] = 0
        return torch.vmap(call, tuple(dims))(*tensors)

    def _drawn(self, group: Sequence[Node]) -> Tensor:
        """Independent draws of each operation's law, `[n, ...]`; in the order of the group."""
        first, count = group[0], len(group)
        target: Any = first.target
        way = DRAWS[target]
        if way == "sizes":
            args = [[count, *a] if isinstance(a, list | tuple) else a for a in first.args]
            return target(*args, **first.kwargs)
        tensors, dims = self._arguments(group)
        stacks = [
            (t.expand(count, *t.shape) if dim is None else t).contiguous() for t, dim in zip(tensors, dims, strict=True)
        ]
        if way == "rows":
            values = stacks[0]
            drawn = target(values.reshape(-1, values.shape[-1]), *first.args[1:], **first.kwargs)
            return drawn.reshape(*values.shape[:-1], -1)
        rank = first.value.dim() + 1
        given = iter([t.reshape(count, *[1] * (rank - t.dim()), *t.shape[1:]) for t in stacks])
        args = mapped(first.args, lambda _: next(given))
        return target(*args, **mapped(first.kwargs, lambda _: next(given)))

    def _arguments(self, group: Sequence[Node]) -> tuple[list[Tensor], list[int | None]]:
        """The tensors that the operations are given, and the dims along which these are stacked."""
        tensors: list[Tensor] = []
        dims: list[int | None] = []
        for nodes in zip(*(nodes_in((n.args, n.kwargs)) for n in group), strict=True):
            same = len(set(nodes)) == 1
            tensors.append(self.one(nodes[0]) if same else self.gathered(nodes))
            dims.append(None if same else 0)
        return tensors, dims

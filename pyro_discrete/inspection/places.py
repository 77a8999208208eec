"""Follows a value of several places (a chain, a matching, a tree) through a run: what reads which places of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.inspection.provenance import (
    Provenance,
    axis_after,
    files_called_from,
    in_a_structure,
    keeps_shape,
)
from pyro_discrete.operations import kind_of, tensors_in, unseen, written_tensors

__all__ = ["Along", "At", "Part", "Places", "SumOfParts"]


@dataclass(frozen=True)
class Along:
    """Entry i of a dim (`axis`, from the right) is computed from place `start` + i of a site's value alone, or from
    the `width` places that begin there."""

    site: str
    axis: int
    start: int
    size: int
    width: int = 1


@dataclass(frozen=True)
class At:
    """All of a tensor is computed from one place of a site's value, or from `width` places that begin there."""

    site: str
    place: int
    width: int = 1


@dataclass(frozen=True, eq=False)
class Part:
    """Summands in the last dim of `table`: the i-th is computed from the `width` places from `start` + i on alone."""

    table: Tensor
    start: int
    width: int = 1


@dataclass(frozen=True, eq=False)
class SumOfParts:
    """A tensor is the sum of the summands of these parts (over their last dims), each of which reads few places."""

    site: str
    parts: tuple[Part, ...]

    @property
    def width(self) -> int:
        """How many places in a row a summand reads at most."""
        return max(part.width for part in self.parts)

    def table(self, places: int, width: int) -> Tensor:
        """All summands, by the first of the `width` (1 or 2) places that they read: `[..., places - width + 1]`."""
        total: Tensor | None = None
        for part in self.parts:
            entries = places - part.width + 1
            table = F.pad(part.table, (part.start, entries - part.start - part.table.shape[-1]))
            if part.width < width:  # the last place is in no pair as the first one
                last = table[..., -2:].sum(-1, keepdim=True)
                table = torch.cat([table[..., :-2], last], -1)
            total = table if total is None else total + table
        assert total is not None
        return total


_VALIDATION = str(Path(torch.distributions.__file__).parent / "distribution.py")
_TORCH = str(Path(torch.__file__).parent)


class Places(Provenance):
    """Follows values of several places while it is entered, and knows of what is computed from them which places it is.

    A result reads one place, or place by place along a dim, if it was computed from such tensors alone and from others
    that no followed value is in; of the operations on tensors along a dim only those of a closed list are known to keep
    its entries apart (see `axis_after`). Tensors of several places (a state of a chain and the next) give results that
    read all places from the first to the last of these.

    A sum over such a dim, and sums, multiples and other linear functions of what is known to be a sum over places, are
    sums over places, whose summands `sum_of` gives, differentiable as the result itself. Again only functions of a
    closed list are known to be linear.

    Of whatever else comes from a followed value nothing is known: `of` has its site, `found` and `sum_of` are None.

    What is noted in `escape` is as in `Provenance`, where it comes from followed values: Python may read all others, as
    the run that is followed is the run that counts. Arguments are validated as always. A value that is written in place
    into a tensor is not followed on.

    >>> import torch
    >>> with Places() as places:
    ...     z = torch.tensor([[0, 0, 0], [1, 1, 1]])
    ...     places.follow(z, "z")
    ...     table = torch.tensor([0.3, 0.7])
    ...     apart, one, joined = table[z].log(), table[z[:, 1]], table[z].sum(-1)
    >>> places.found(apart), places.found(one), places.found(joined), sorted(places.of(joined))
    (Along(site='z', axis=-1, start=0, size=3, width=1), At(site='z', place=1, width=1), None, ['z'])
    >>> summands = places.sum_of(joined).table(places=3, width=1)  # for either number, of all three places
    >>> summands.shape, torch.equal(summands.sum(-1), joined)
    (torch.Size([2, 3]), True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._sites: dict[int, frozenset[str]] = {}
        self._held: list[Tensor] = []
        self._known: dict[Any, Along | At] = {}
        self._sums: dict[int, tuple[Tensor, SumOfParts]] = {}
        self._aside = False

    def follow(self, value: Tensor, site: str) -> None:
        """From here on follow a site's value, `[..., places]`."""
        self._comes_from(value, frozenset([site]))
        self._note(value, Along(site, -1, 0, value.shape[-1]))

    def found(self, tensor: Tensor) -> Along | At | None:
        """Which places a tensor was computed from, if that is known."""
        return self._known.get(self._where(tensor))

    def sum_of(self, tensor: Tensor) -> SumOfParts | None:
        """Of a sum over places its summands, if it is known to be one."""
        held = self._sums.get(id(tensor))
        return None if held is None else held[1]

    def of(self, *values: Any) -> frozenset[str]:
        """The sites whose followed values are in these tensors; whatever is not a tensor has none."""
        keys = [self._key(value) for value in values if isinstance(value, Tensor)]
        return frozenset[str]().union(*(self._sites[key] for key in keys if key in self._sites))

    def _comes_from(self, tensor: Tensor, sites: frozenset[str]) -> None:
        key = self._key(tensor)
        if key is not None:
            self._sites[key] = self._sites.get(key, frozenset()) | sites
            self._held.append(tensor)  # no other storage gets its address

    def _where(self, tensor: Tensor) -> Any:
        """A tensor's place in memory: what has the same holds the same."""
        with unseen():
            return self._key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype

    def _note(self, tensor: Tensor, status: Along | At) -> None:
        self._known[self._where(tensor)] = status

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._aside:
            return func(*args, **kwargs)
        moved = [tensor for tensor in tensors_in((*args, *kwargs.values())) if self._key(tensor) in self._sites]
        kind = kind_of(func)
        name = kind.name
        if not moved or kind.of_shapes:
            return func(*args, **kwargs)
        if kind.reads and not (self.reading_allowed or _is_validation() or in_a_structure()):
            self.escaped(f"Python reads a tensor's value ({name})")
        if kind.shapes and not keeps_shape(func, args):
            self.escaped(f"a shape depends on values ({name})")
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.escaped(f"an operation fails ({name})")
            raise
        sites = self.of(*moved)
        if kind.writes:
            written = written_tensors(func, args, kwargs)
            keys = {self._key(tensor) for tensor in written}
            if not keys <= self._sites.keys() and not self.reading_allowed:
                self.escaped("a value is written in place into another tensor")
            for tensor in written:
                self._comes_from(tensor, sites)
            self._known = {where: held for where, held in self._known.items() if where[0] not in keys}
            self._sums = {i: held for i, held in self._sums.items() if self._key(held[0]) not in keys}
            return result
        made = tensors_in([result])
        for tensor in made:
            self._comes_from(tensor, sites)
        first = _together([self.found(tensor) for tensor in moved])
        if isinstance(first, At):
            for tensor in made:
                self._note(tensor, first)
        elif first is not None:
            self._along(func, args, kwargs, result, moved, first)
        return result

    def _along(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        moved: Sequence[Tensor],
        known: Along,
    ) -> None:
        """What an operation makes of tensors that read place by place along a dim."""
        name, tensor = func.overloadpacket.__name__, moved[0]
        if name in ("select", "unbind", "slice") and len(moved) == 1 and tensor is args[0]:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if dim % tensor.dim() == tensor.dim() + known.axis:
                self._taken_out(name, args, kwargs, result, known)
                return
        for made in tensors_in([result]):
            axis = axis_after(func, args, kwargs, made, moved, lambda _: known.axis)
            if axis is not None:
                self._note(made, replace(known, axis=axis))

    def _taken_out(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, known: Along
    ) -> None:
        """Of the places themselves: one, each, or some that follow one another."""
        if name == "unbind":
            for i, made in enumerate(result):
                self._note(made, At(known.site, known.start + i, known.width))
            return
        index = args[2] if len(args) > 2 else kwargs.get("index", kwargs.get("start"))
        index = 0 if index is None else int(index)
        first = max(index + known.size, 0) if index < 0 else index
        if name == "select":
            self._note(result, At(known.site, known.start + first, known.width))
        elif (args[4] if len(args) > 4 else kwargs.get("step", 1)) == 1:
            size = result.shape[known.axis]
            self._note(result, replace(known, start=known.start + min(first, known.size), size=size))

    # ------------------------------------------------------------------------------------------------ what may be read

    def left(self, args: Sequence[Any], how: str) -> None:
        if self.of(*args):
            self.escaped(how)

    def one_hot(self, index: Tensor, result: Tensor) -> None:
        known = self.found(index)
        if isinstance(known, At):
            self._note(result, known)
        elif known is not None:
            self._note(result, replace(known, axis=known.axis - 1))

    # ------------------------------------------------------------------------------------------------ sums over places

    def called(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note whether what a function has given is a sum over places."""
        name = getattr(func, "__name__", "")
        if name not in _FOLLOWED or not isinstance(result, Tensor) or self._aside or id(result) in self._sums:
            return
        if not result.is_floating_point() and result.dtype not in (torch.int64, torch.int32):
            return  # bits and small integers do not add up
        moved = [v for v in tensors_in((*args, *kwargs.values())) if self._key(v) in self._sites]
        if not moved:
            return
        self._aside = True  # what follows is no part of the program
        try:
            found = self._summed(name, func, args, kwargs, result, moved)
        except (RuntimeError, IndexError, TypeError, ValueError):  # not in such a way, so nothing is known
            return
        finally:
            self._aside = False
        if found is not None:
            shapes = {tuple(part.table.shape[:-1]) for part in found.parts}
            if shapes == {tuple(result.shape)}:
                self._sums[id(result)] = (result, found)

    def _summed(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
        moved: Sequence[Tensor],
    ) -> SumOfParts | None:
        if name in _ADDED:
            return self._added(args[0], args[1], _ADDED[name], kwargs, result)
        if len(moved) != 1:
            return None
        known = self._as_sum(moved[0])
        if known is not None:
            place = next((i for i, v in enumerate(args) if v is moved[0]), None)
            if place is None or (place > 0 and name not in _PRODUCTS) or kwargs.get("rounding_mode") is not None:
                return None
            if name == "linear" or (result.dtype != moved[0].dtype and not result.is_floating_point()):
                return None  # with a constant added; rounded, or made of bits

            def of_each(entry: Tensor) -> Any:
                return func(*args[:place], entry, *args[place + 1 :], **kwargs)

            each = torch.vmap(of_each, in_dims=-1, out_dims=-1)
            return replace(known, parts=tuple(replace(p, table=each(p.table)) for p in known.parts))
        along = self.found(moved[0])
        if not isinstance(along, Along):
            return None
        table: Tensor | None = None
        if name in _REDUCTIONS:
            table = _apart(func, args, kwargs, moved[0], along)
        elif name in _CONTRACTIONS:
            table = _contracted(name, args, kwargs, moved[0], along)
        return None if table is None else SumOfParts(along.site, (Part(table, along.start, along.width),))

    def _as_sum(self, tensor: Tensor) -> SumOfParts | None:
        """A tensor as a sum over places: one that reads a single place is a sum of one summand."""
        known, found = self.sum_of(tensor), self.found(tensor)
        if known is None and isinstance(found, At) and found.width <= 2:
            return SumOfParts(found.site, (Part(tensor.unsqueeze(-1), found.place, found.width),))
        return known

    def _added(
        self, one: Any, other: Any, sign: tuple[int, int], kwargs: Mapping[str, Any], result: Tensor
    ) -> SumOfParts | None:
        """The sum or difference of two numbers or tensors, of which one or both are sums over places."""
        factor = kwargs.get("alpha", 1)
        if factor != 1 and sign[0] < 0:
            return None
        parts: list[Part] = []
        constants: list[Any] = []
        sites = set()
        for value, weight in ((one, sign[0]), (other, sign[1] * factor)):
            if not isinstance(value, Tensor) or not self.of(value):
                constants.append(value * weight)
                continue
            known = self._as_sum(value)
            if known is None:
                return None
            sites.add(known.site)
            for part in known.parts:
                table = part.table if weight == 1 else part.table * weight
                parts.append(replace(part, table=table.expand(*result.shape, table.shape[-1])))
        if len(sites) != 1:
            return None
        for constant in constants:  # it may be counted to any summand
            first = parts[0].table
            constant = constant.unsqueeze(-1) if isinstance(constant, Tensor) else constant
            parts[0] = replace(parts[0], table=torch.cat([first[..., :1] + constant, first[..., 1:]], -1))
        return SumOfParts(next(iter(sites)), tuple(_merged(parts)))


_REDUCTIONS = {"sum", "mean"}


_CONTRACTIONS = {"matmul", "__matmul__", "mv", "dot", "mm", "bmm", "einsum", "linear"}


_PRODUCTS = _CONTRACTIONS | {"mul", "__mul__", "__rmul__", "multiply"}
"""Functions that are linear in each of several arguments."""


_ADDED = {"add": (1, 1), "__add__": (1, 1), "__radd__": (1, 1), "sub": (1, -1), "__sub__": (1, -1)}
_ADDED |= {"subtract": (1, -1), "__rsub__": (-1, 1), "rsub": (-1, 1)}
"""Functions of two numbers or tensors, with the sign that each gets."""


_LINEAR = _REDUCTIONS | _PRODUCTS | {"div", "__truediv__", "true_divide", "divide", "neg", "__neg__", "negative"}
_LINEAR |= {"clone", "contiguous", "detach", "double", "float", "to", "type_as"}
_LINEAR |= {"__getitem__", "broadcast_to", "expand", "expand_as", "flatten", "movedim", "permute", "reshape", "select"}
_LINEAR |= {"squeeze", "transpose", "unsqueeze", "view"}
"""Functions that are linear in their first argument, if the others are fixed."""


_FOLLOWED = _LINEAR | _ADDED.keys()


def _together(known: Sequence[Along | At | None]) -> Along | At | None:
    """What reads several tensors: the places from the first to the last of all of theirs, if these are known."""
    first = known[0]
    if len(set(known)) == 1 or first is None:
        return first
    if any(type(one) is not type(first) or one is None or one.site != first.site for one in known):
        return None
    if isinstance(first, At):
        start, end = min(at.place for at in known), max(at.place + at.width for at in known)  # type: ignore[union-attr]
        return At(first.site, start, end - start)
    dims = {(along.axis, along.size) for along in known}  # type: ignore[union-attr]
    start, end = min(a.start for a in known), max(a.start + a.width for a in known)  # type: ignore[union-attr]
    return Along(first.site, first.axis, start, first.size, end - start) if len(dims) == 1 else None


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Parts of the same places in one."""
    found: dict[tuple[int, int, int], Part] = {}
    for part in parts:
        key = part.start, part.width, part.table.shape[-1]
        found[key] = replace(part, table=found[key].table + part.table) if key in found else part
    return list(found.values())


def _apart(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Tensor, along: Along
) -> Tensor | None:
    """What each entry of the dim of places adds to a sum, or mean, over this dim and maybe others."""
    dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    listed = [] if dims is None else [dims] if isinstance(dims, int) else dims
    summed = {int(d) % tensor.dim() for d in listed} or {*range(tensor.dim())}
    place = tensor.dim() + along.axis
    if tensor is not args[0] or len(args) > 3 or place not in summed:
        return None
    entries = tensor if tensor.is_floating_point() else tensor.long()  # bits are counted
    entries = entries.to(kwargs.get("dtype") or entries.dtype).movedim(place, -1)
    others = [d - (d > place) for d in sorted(summed - {place})]
    table = entries.sum(others) if others else entries
    if func.__name__ == "mean":
        table = table / math.prod(tensor.shape[d] for d in summed)
    if args[2] if len(args) > 2 else kwargs.get("keepdim", False):
        for d in sorted(summed):
            table = table.unsqueeze(d)
    return table


def _contracted(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Tensor, along: Along
) -> Tensor | None:
    """What each entry of the dim of places adds to a product that sums over this dim; None where it does not."""
    if name == "einsum":
        equation, *operands = args
        if not isinstance(equation, str) or any(not isinstance(v, Tensor) for v in operands):
            return None
        taken, _, made = equation.replace(" ", "").partition("->")
        mine = taken.split(",")[next(i for i, v in enumerate(operands) if v is tensor)]
        behind = mine.rpartition(".")[2]
        letter = behind[along.axis] if -along.axis <= len(behind) else ""
        if "->" not in equation or not letter or letter in made or mine.count(letter) > 1:
            return None
        return torch.einsum(f"{taken}->{made}{letter}", *operands)
    one, other = args[0], args[1]
    if name == "linear":
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if tensor is not one or along.axis != -1:
            return None
        table = tensor.unsqueeze(-2) * other
        first = table[..., :1] if bias is None else table[..., :1] + bias.unsqueeze(-1)
        return torch.cat([first, table[..., 1:]], -1)
    if tensor is one and along.axis == -1:
        return tensor * other if other.dim() == 1 else tensor.unsqueeze(-2) * other.mT.unsqueeze(-3)
    if tensor is other and along.axis == -2:
        if one.dim() == 1:
            return other.mT * one
        return one.unsqueeze(-2) * other.mT.unsqueeze(-3)
    return None


def _is_validation() -> bool:
    """Whether a distribution validates its arguments: it raises, or goes on as if it had not looked."""
    return next((f for f in files_called_from() if f == _VALIDATION or not f.startswith(_TORCH)), "") == _VALIDATION

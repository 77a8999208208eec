"""Follows a value of several places (a chain, a matching, a tree) through a run: what reads one place of it alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.inspection.provenance import (
    SHAPES_ALONE,
    Provenance,
    axis_after,
    files_called_from,
    in_a_structure,
    keeps_shape,
    written_tensors,
)

__all__ = ["Along", "At", "Places"]


@dataclass(frozen=True)
class Along:
    """Entry i of a dim (`axis`, from the right) is computed from place `start` + i of a site's value alone."""

    site: str
    axis: int
    start: int
    size: int


@dataclass(frozen=True)
class At:
    """All of a tensor is computed from one place of a site's value."""

    site: str
    place: int


_VALIDATION = str(Path(torch.distributions.__file__).parent / "distribution.py")
_TORCH = str(Path(torch.__file__).parent)


class Places(Provenance):
    """Follows values of several places while it is entered, and knows of what is computed from them which places it is.

    A result reads one place, or place by place along a dim, if it was computed from such tensors alone and from others
    that no followed value is in; of the operations on tensors along a dim only those of a closed list are known to keep
    its entries apart (see `axis_after`). Of whatever else comes from a followed value nothing is known: `of` has its
    site, `found` is None.

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
    (Along(site='z', axis=-1, start=0, size=3), At(site='z', place=1), None, ['z'])
    """

    quiet: bool

    def __init__(self) -> None:
        super().__init__()
        self._sites: dict[int, frozenset[str]] = {}
        self._held: list[Tensor] = []
        self._known: dict[Any, Along | At] = {}

    def follow(self, value: Tensor, site: str) -> None:
        """From here on follow a site's value, `[..., places]`."""
        self._comes_from(value, frozenset([site]))
        self._note(value, Along(site, -1, 0, value.shape[-1]))

    def found(self, tensor: Tensor) -> Along | At | None:
        """Which places a tensor was computed from, if that is known."""
        return self._known.get(self._where(tensor))

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
        before, self.quiet = self.quiet, True
        try:
            return self._key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        finally:
            self.quiet = before

    def _note(self, tensor: Tensor, status: Along | At) -> None:
        self._known[self._where(tensor)] = status

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        moved = [tensor for tensor in _tensors((*args, *kwargs.values())) if self._key(tensor) in self._sites]
        name = func.overloadpacket.__name__
        if not moved or name in SHAPES_ALONE:
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags and not (
            self.reading_allowed or _is_validation() or in_a_structure()
        ):
            self.escaped(f"Python reads a tensor's value ({name})")
        if torch.Tag.dynamic_output_shape in func.tags and not keeps_shape(func, args):
            self.escaped(f"a shape depends on values ({name})")
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.escaped(f"an operation fails ({name})")
            raise
        sites = self.of(*moved)
        if func._schema.is_mutable:
            written = written_tensors(func, args, kwargs)
            keys = {self._key(tensor) for tensor in written}
            if not keys <= self._sites.keys() and not self.reading_allowed:
                self.escaped("a value is written in place into another tensor")
            for tensor in written:
                self._comes_from(tensor, sites)
            self._known = {where: held for where, held in self._known.items() if where[0] not in keys}
            return result
        made = _tensors([result])
        for tensor in made:
            self._comes_from(tensor, sites)
        known = {self.found(tensor) for tensor in moved}
        first = next(iter(known)) if len(known) == 1 else None
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
        for made in _tensors([result]):
            axis = axis_after(func, args, kwargs, made, moved, lambda _: known.axis)
            if axis is not None:
                self._note(made, Along(known.site, axis, known.start, known.size))

    def _taken_out(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, known: Along
    ) -> None:
        """Of the places themselves: one, each, or some that follow one another."""
        if name == "unbind":
            for i, made in enumerate(result):
                self._note(made, At(known.site, known.start + i))
            return
        index = args[2] if len(args) > 2 else kwargs.get("index", kwargs.get("start"))
        index = 0 if index is None else int(index)
        first = max(index + known.size, 0) if index < 0 else index
        if name == "select":
            self._note(result, At(known.site, known.start + first))
        elif (args[4] if len(args) > 4 else kwargs.get("step", 1)) == 1:
            size = result.shape[known.axis]
            self._note(result, Along(known.site, known.axis, known.start + min(first, known.size), size))

    # ------------------------------------------------------------------------------------------------ what may be read

    def left(self, args: Sequence[Any], how: str) -> None:
        if self.of(*args):
            self.escaped(how)

    def one_hot(self, index: Tensor, result: Tensor) -> None:
        known = self.found(index)
        if isinstance(known, At):
            self._note(result, known)
        elif known is not None:
            self._note(result, Along(known.site, known.axis - 1, known.start, known.size))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments, or results."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _is_validation() -> bool:
    """Whether a distribution validates its arguments: it raises, or goes on as if it had not looked."""
    return next((f for f in files_called_from() if f == _VALIDATION or not f.startswith(_TORCH)), "") == _VALIDATION

"""Whether plate elements, or rows, stay apart on their way through a program: by its operations, whatever its numbers.

A look at values, however they are chosen, is about the numbers that a program has in it: a mask, an index, a matrix
that is the identity today may join tomorrow what it keeps apart now. What the operations keep apart stays so for as
long as the program makes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.inspection.provenance import NOTHING, Names, Provenance, axis_after, keeps_shape
from pyro_discrete.operations import Kind, kind_of, tensors_in, unseen, written_tensors
from pyro_discrete.programs.alike_sites import Entries, entries_of_law, scored_together
from pyro_discrete.programs.dims import ROWS_PLATE, plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, SiteMessenger, on_trial, trace_pair
from pyro_discrete.programs.sites import is_latent, masked_law, sample_sites, site_log_prob

__all__ = ["MIXED", "Elements", "Followed", "FollowedRun", "Keeping", "Parts", "Place", "follow", "run_followed"]


class Keeping(Enum):
    """What is known of elements: that operations keep them apart, that these may mix them, or neither."""

    APART = "apart"
    MIXED = "mixed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Followed:
    """What the operations of one run say.

    - `reason`: why they do not say what is kept apart, if so. `mixed`, `unknown`: plates (`ROWS_PLATE` for rows) of
      whose elements the term of a site, of this name, may be a mixture; and of which that cannot be told.
    - `reached`: of each term of the guide (0) and model (1), in a plate or not, the draws that it is computed from.
    """

    reason: str = ""
    mixed: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    reached: Mapping[tuple[int, str], Names] = field(default_factory=dict)

    def of(self, plate: str) -> Keeping:
        """What is known of a plate's elements."""
        if plate in self.mixed:  # by operations, whatever Python makes of draws beside them
            return Keeping.MIXED
        return Keeping.UNKNOWN if self.reason or plate in self.unknown else Keeping.APART

    def reaches(self, draws: Collection[str], where: int, term: str) -> bool:
        """Whether one of the draws may reach a term. True where that is not known."""
        return bool(self.reason) or not self.reached.get((where, term), frozenset(draws)).isdisjoint(draws)


class Parts(NamedTuple):
    """What of a site's term a draw may reach: its log-probability, scale and mask, and that of the law of a latent site
    under a mask, which is drawn from all the same."""

    log_prob: Tensor
    hidden: Tensor | None
    scale: Any
    mask: Any


@dataclass(frozen=True)
class FollowedRun:
    """The traces of a run of guide and model, the parts of their sites' terms, and what its operations say."""

    traces: tuple[Trace, Trace]
    parts: tuple[dict[str, Parts], dict[str, Parts]]
    said: Followed


def run_followed(
    pair: Pair,
    subsamples: KeepSubsamples,
    values: Mapping[str, Tensor],
    draws: Collection[str],
    rows: tuple[int, int] | None = None,
    under_plate: bool = True,
) -> FollowedRun:
    """Run the pair at these values, and follow the elements of these draws. Raises what the program does, which may be
    of its being followed.

    `rows`: of rows that the values have, their number and dim; `under_plate`: whether a plate of them is around the
    programs.
    """
    elements, dim = Elements(), None if rows is None else rows[1]
    marks, over = _MarkElements(elements, draws, dim), rows if under_plate else None
    with torch.no_grad(), elements, marks:
        traces = trace_pair(pair, subsamples, values, rows=over)
        guide, model = (_parts(elements, sample_sites(t)) for t in traces)
        said = _said(elements, traces, (guide, model), dim)
    return FollowedRun(traces, (guide, model), said)


def follow(
    pair: Pair,
    subsamples: KeepSubsamples,
    values: Mapping[str, Tensor],
    draws: Collection[str],
    rows: tuple[int, int] | None = None,
    under_plate: bool = True,
) -> Followed:
    """What the operations of such a run say, without validation, and with all states left as they were."""
    if pair.guide_runs_model:
        return Followed("the guide runs the model itself")
    try:
        with on_trial(), pyro.validation_enabled(False):
            return run_followed(pair, subsamples, values, draws, rows, under_plate).said
    except Exception as error:
        return Followed(f"a run failed: {type(error).__name__}")


class Place(NamedTuple):
    """Where a tensor has elements: entry e of `dim` (from the right) is of element `e // inner % size`.

    Or of that which `of` has at this place, none where it has `NONE`. All entries are of one element where dim is 0.
    """

    dim: int
    inner: int
    size: int
    of: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """The element at each place."""
        return self.of or tuple(range(self.size))


Found = dict[str, "Place | None"]
"""Where a tensor has the elements of plates, by their names; None where that is not known."""

MIXED = Place(0, 0, 0)
"""Stands for entries that may come from several elements."""

NONE = -1
"""Stands for no element."""


_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}
"""Products of matrices, with the place of the first one among the arguments."""

_LISTS = {"cat", "stack"}

_VIEWS = {"view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten"}

_TAKING: dict[str, tuple[int, Any]] = {
    **dict.fromkeys(("slice", "select", "unbind"), (1, 0)),
    **dict.fromkeys(("split", "split_with_sizes"), (2, 0)),
    "flip": (1, ()),
    "roll": (2, ()),
}
"""Operations that take entries of a dim, or several, each with the place of these among the arguments, and what they
are without it."""

_ALONG: dict[str, tuple[int, Any]] = {
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort"), (1, -1)),
    "index_select": (1, 0),
    **dict.fromkeys(("var", "std"), (1, None)),
    "linalg_vector_norm": (2, None),
    "topk": (2, -1),
}
"""Operations along one dim, or several, likewise (None for all)."""

_SCATTERS = {"scatter", "scatter_add", "scatter_reduce"}

_OF_ONE = {"sum", "mean", "prod", "logsumexp", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all"}

_OF_ONE |= {"_log_softmax", "_softmax"}

_MATRICES = {"linalg_cholesky_ex", "cholesky", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"}
"""Operations on the last two dims, for each entry of those before."""

_OF_ENTRIES = {"copy_", "fill_", "zero_", "tril", "triu"}
"""Operations on each entry by itself that have no tag that says so."""


class Elements(Provenance):
    """Follows in which dims of a tensor the elements of plates are kept apart.

    Only what Python sees of draws is an escape: what it sees of other tensors decides between branches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plates: dict[str, frozenset[str]] = {}
        self._known: dict[int, tuple[Tensor, Names, Found]] = {}
        self._sharing: dict[int, list[int]] = {}
        self._mixed: dict[int, frozenset[str]] = {}

    def mark(self, tensor: Tensor, names: Iterable[str], axis: int | None = None) -> None:
        """As in `Provenance`; a draw that is marked in this way alone has no plates."""
        names = [*names]
        super().mark(tensor, names, axis)
        for name in names:
            self.plates.setdefault(name, frozenset())

    def mark_elements(self, tensor: Tensor, name: str, at: Mapping[str, Place]) -> None:
        """A draw, and where it has the elements of its plates; not so of those that it names alone."""
        if name in self.plates and not at.keys() <= self.plates[name]:  # what is noted is not of all plates
            self._known = {i: (held, NOTHING, found) for i, (held, _, found) in self._known.items()}
        self.mark(tensor, [name])
        self.plates[name] |= at.keys()
        places = {plate: place for plate, place in at.items() if tensor.dim() >= -place.dim > 0}
        at_size = {p: a for p, a in places.items() if tensor.shape[a.dim] == a.size}
        key = self._key(tensor)
        names = self._names_at([key])
        found = {plate: at_size.get(plate) for draw in names for plate in self.plates[draw]}
        self._note(tensor, key, names, found)

    def _note(self, tensor: Tensor, key: int | None, names: Names, places: Found) -> None:
        """Where a tensor has elements; `names`: the draws that it comes from, if this is of all of their plates."""
        self._known[id(tensor)] = tensor, names, places
        self._sharing.setdefault(key or 0, []).append(id(tensor))

    def elements_of(self, tensor: Any) -> Found:
        """Of each plate whose elements a tensor is computed from, where it has them; `MIXED`, or None if unknown."""
        key = self._key(tensor)
        held = self._origin.get(key or 0)
        return self._elements_at(tensor, key, held[1]) if held is not None and held[1] else {}

    def _elements_at(self, tensor: Any, key: int | None, names: Names) -> Found:
        """The same of a tensor with this key, that comes from these draws."""
        known = self._known.get(id(tensor), _UNKNOWN)
        if known[1] is names and not self._mixed:
            return known[2]
        places = {plate: at for plate, at in known[2].items() if at is not None}
        if self._mixed:
            places = dict.fromkeys(self._mixed.get(key or 0, ()), MIXED) | places
        return {plate: places.get(plate) for draw in names for plate in self.plates[draw]}

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one operation, and note where its results have elements."""
        kind = kind_of(func)
        read = tensors_in((*args, *kwargs.values()) if kwargs else args)
        names, before, origin = NOTHING, dict[int, tuple[Tensor, Found]](), self._origin
        with unseen():
            keys = self._keys(read)
            for tensor, key in zip(read, keys, strict=True):
                held = origin.get(key)  # type: ignore[arg-type]
                if held is not None and held[1]:
                    names = held[1] if not names or names is held[1] else names | held[1]
                    has = self._elements_at(tensor, key, held[1])
                    if has:
                        before[id(tensor)] = tensor, has
        result, made, made_keys = self._run(func, kind, args, kwargs, read, keys, names)
        if before:
            with unseen():
                self._noted(func, kind, args, kwargs, read, [*before.values()], made, made_keys)
        return result

    def _noted(
        self,
        func: Any,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        read: Sequence[Tensor],
        moved: Sequence[tuple[Tensor, Found]],
        made: Sequence[Tensor],
        made_keys: Sequence[int | None],
    ) -> None:
        """Note where the results of an operation have elements, where those that are `moved` by these have them."""
        written: Collection[int | None] = ()
        if kind.writes:
            written = {self._key(tensor) for tensor in written_tensors(func, args, kwargs)} - {None}
            for key in written:
                for known in self._sharing.pop(key or 0, ()):
                    self._known.pop(known, None)
        for number, (tensor, key) in enumerate(zip(made, made_keys, strict=True)):
            held = self._origin.get(key or 0)
            if held is None or not held[1]:
                continue
            found: Found | None = moved[0][1] if kind.pointwise and _stay(moved, tensor) else None
            if kind.shapes and not keeps_shape(func, args):  # which entries are taken, and where these go, values say
                found = dict.fromkeys([plate for _, has in moved for plate in has])
            if found is None:
                operation = func, kind, args, kwargs, read, tensor, number
                if len(moved) == 1:
                    (one, has), *_ = moved
                    found = {plate: _after_one(*operation, one, at) for plate, at in has.items()}
                else:
                    found = {plate: _after(*operation, *each) for plate, each in _by_plate(moved).items()}
            self._note(tensor, key, held[1] if key not in written else NOTHING, found)
            if key in written and key is not None:  # a part of it, perhaps
                mixed = frozenset(p for p, at in found.items() if at is MIXED)
                self._mixed[key] = self._mixed.get(key, frozenset()) | mixed

    def scored(self, log_prob: Tensor, law: Entries, value: Tensor) -> None:
        """Note where the log-probability of a value has elements, by a law that keeps entries apart."""
        read = [*law.parameters, value]
        with unseen():
            key, keys = self._key(log_prob), self._keys(read)
            names = self._names_at(keys)
            if key is None or not names:
                return
            self._add(key, log_prob, names)
            places: dict[str, list[Place | None]] = {}
            for tensor, its_key in zip(read, keys, strict=True):
                inner = 0 if tensor is value else law.inner
                for plate, at in self._elements_at(tensor, its_key, self._names_at([its_key])).items():
                    places.setdefault(plate, []).append(_in_scores(at, tensor, inner, law.events, log_prob))
            self._note(log_prob, key, names, {plate: _together(each) for plate, each in places.items()})

    def left(self, args: Sequence[Any], how: str) -> None:
        """Note that these leave torch, if they come from draws."""
        if self.of(*tensors_in(args)):
            super().left(args, how)

    def _may_be_read(self, read: Sequence[Tensor]) -> bool:
        return not self.of(*read) or super()._may_be_read(read)


_SPECIAL = {*_LISTS, *_VIEWS, *_TAKING, *_OF_ENTRIES}


_UNKNOWN: tuple[Any, Any, Found] = (None, None, {})


def _stay(moved: Sequence[tuple[Tensor, Found]], result: Tensor) -> bool:
    """Whether what keeps entries apart leaves all elements where these tensors have them."""
    first, shape = moved[0][1], result.shape
    return all(tensor.shape == shape and (has is first or has == first) for tensor, has in moved)


def _in_scores(at: Place | None, tensor: Tensor, inner: int, events: int, scores: Tensor) -> Place | None:
    """Where the scores of a value have elements of one of the tensors that they are computed from.

    `inner`: dims of the tensor on the right of the values'. `events`: dims of these that are added up.
    """
    if at is None or at is MIXED or at.dim == 0:
        return at
    if at.dim >= -inner - events:
        return MIXED
    dim = at.dim + inner + events
    kept = scores.dim() >= -dim and scores.shape[dim] == tensor.shape[at.dim]
    return at._replace(dim=dim) if kept else None


def _together(places: Sequence[Place | None]) -> Place | None:
    """The same of all of these tensors, entry by entry."""
    first = places[0]
    if all(place is first or place == first for place in places):
        return first
    return None if None in places and MIXED not in places else MIXED


Moved = tuple[list[Tensor], list["Place | None"]]
"""The tensors among the arguments that are computed from a plate's elements, and where each has these."""


def _by_plate(moved: Sequence[tuple[Tensor, Found]]) -> dict[str, Moved]:
    found: dict[str, Moved] = {}
    for tensor, has in moved:
        for plate, at in has.items():
            tensors, places = found.setdefault(plate, ([], []))
            tensors.append(tensor)
            places.append(at)
    return found


def _after_one(
    func: Any,
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Sequence[Tensor],
    result: Tensor,
    number: int,
    tensor: Tensor,
    at: Place | None,
) -> Place | None:
    """Where a result has a plate's elements, of which one tensor among the arguments is computed."""
    name = kind.name
    if at is None or at == MIXED or (at.dim == 0 and name not in _LISTS):
        return at
    if name in _SPECIAL:
        return _after(func, kind, args, kwargs, read, result, number, [tensor], [at])
    if kind.pointwise:
        dim, understood = at.dim, True
    else:
        dim, understood = _dim_after(func, name, args, kwargs, read, result, [tensor], at.dim)
    if dim is None:
        return MIXED if understood else None
    if result.dim() < -dim or result.shape[dim] != tensor.shape[at.dim]:
        return None
    return at if dim == at.dim else at._replace(dim=dim)


def _after(
    func: Any,
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Sequence[Tensor],
    result: Tensor,
    number: int,
    tensors: Sequence[Tensor],
    given: Sequence[Place | None],
) -> Place | None:
    """Where a result, that of this number, has a plate's elements."""
    at, name = given[0], kind.name
    alike = len(given) == 1 or all(place is at or place == at for place in given)
    if not alike or at is None:
        if MIXED in given:
            return MIXED
        if None in given:
            return None
    if alike and at == MIXED:
        return MIXED
    places: Sequence[Place] = given  # type: ignore[assignment]
    at = places[0]
    if at.dim == 0 and alike and name not in _LISTS:
        return at
    if name in _LISTS:
        return _put_together(name, args, kwargs, result, dict(zip(map(id, tensors), places, strict=True)))
    if any(place.dim == 0 for place in places):
        return MIXED
    if name in _VIEWS:
        return _viewed(tensors[0], at, result)
    if name in _TAKING and len(tensors) == 1:
        return _taken(name, args, kwargs, tensors[0], number, result, at)
    size = tensors[0].shape[at.dim]
    if not alike or (len(tensors) > 1 and any(t.shape[at.dim] != size for t in tensors)):
        if kind.pointwise and len({(p.dim, p.inner, p.size) for p in places}) == 1:
            return _merged(places)
        return MIXED if kind.pointwise or name in _PRODUCTS or name in ("dot", "mv") else None
    if kind.pointwise or name in _OF_ENTRIES:
        dim, understood = at.dim, True
    else:
        dim, understood = _dim_after(func, name, args, kwargs, read, result, tensors, at.dim)
    if dim is None:
        return MIXED if understood else None
    if result.dim() < -dim or result.shape[dim] != size:
        return None
    return at if dim == at.dim else at._replace(dim=dim)


def _merged(places: Sequence[Place]) -> Place:
    """Entries of several tensors together, if each has elements of one kind at most."""
    at_each = [set(each) - {NONE} for each in zip(*(place.order for place in places), strict=True)]
    if any(len(each) > 1 for each in at_each):
        return MIXED
    return places[0]._replace(of=tuple(min(each, default=NONE) for each in at_each))


def _put_together(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor, places: Mapping[int, Place]
) -> Place | None:
    """Tensors beside each other, along a dim that has the elements, is to have them, or has nothing to do with them."""
    parts: Sequence[Tensor] = args[0]
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim() - result.dim()
    dims = {at.dim for at in places.values()}
    if dims == {0} or (name == "cat" and dims <= {0, along}):
        order: list[int] = []
        for part in parts:
            at, entries = places.get(id(part)), 1 if name == "stack" else part.shape[along]
            if at is not None and at.dim and (at.inner != 1 or at.size != entries):
                return MIXED
            order += [NONE] * entries if at is None else at.order if at.dim else at.order * entries
        return Place(along, 1, len(order), tuple(order))
    if 0 in dims or len({*places.values()}) > 1:
        return MIXED
    (dim,) = dims
    if name == "stack":
        dim -= along >= dim
    return next(iter(places.values()))._replace(dim=dim)


def _taken(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Tensor, number: int, result: Tensor, at: Place
) -> Place | None:
    """What an operation that takes entries of a tensor leaves of its elements, in which order."""
    where, unless = _TAKING[name]
    given = args[where] if len(args) > where else kwargs.get("dims" if name == "roll" else "dim", unless)
    dims = [d % tensor.dim() for d in (given if isinstance(given, list | tuple) else [given])]
    place = tensor.dim() + at.dim
    if place not in dims:
        if name == "roll" and not dims:
            return MIXED
        gone = sum(d < place for d in dims) if result.dim() < tensor.dim() else 0
        return at._replace(dim=place - gone - result.dim())
    if at.inner != 1 or at.size != tensor.shape[place]:
        return MIXED
    order = at.order
    if name in ("select", "unbind"):
        return Place(0, 1, 1, (order[args[2] if name == "select" else number],))
    if name == "slice":
        start, end, step = (args[k] if len(args) > k else None for k in (2, 3, 4))
        order = order[start:end:step]
    elif name == "flip":
        order = order[::-1]
    elif name == "roll":
        shifts = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        by = shifts[dims.index(place)] % len(order)
        order = order[-by:] + order[:-by] if by else order
    else:
        sizes = args[1] if name == "split_with_sizes" else [args[1]] * (number + 1)
        begin = sum(sizes[:number])
        order = order[begin : begin + sizes[number]]
    if not order:
        return None
    return Place(0, 1, 1, order) if len(order) == 1 else Place(at.dim, 1, len(order), order)


def _viewed(tensor: Tensor, at: Place, result: Tensor) -> Place | None:
    """The same numbers in their order, in other dims: in one of these the elements are again, or nothing is known."""
    if result.numel() != tensor.numel():  # of another dtype
        return None
    behind = at.inner * math.prod(tensor.shape[at.dim :][1:])
    for dim in range(-result.dim(), 0):
        after = math.prod(result.shape[dim:][1:])
        whole = after * result.shape[dim]
        if after and after <= behind and behind % after == 0 and whole % (behind * at.size) == 0:
            return at._replace(dim=dim, inner=behind // after)
    return None


def _dim_after(
    func: Any,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Sequence[Tensor],
    result: Tensor,
    moved: Sequence[Tensor],
    dim: int,
) -> tuple[int | None, bool]:
    """The dim of the result that has the elements which the dim of each moved tensor has; None where there is none, and
    whether it is known, then, that they are mixed."""
    tensor, plain = moved[0], name.rstrip("_")
    once = sum(each is tensor for each in read) == 1
    place, alone = tensor.dim() + dim, len(moved) == 1 and tensor is args[0] and once
    if name in _PRODUCTS:
        return _of_matrices(args, _PRODUCTS[name], result, moved, dim)
    if name in ("mv", "dot"):
        return (-1, True) if name == "mv" and alone and dim == -2 else (None, True)
    if name in _MATRICES:
        return (dim if dim < -2 else None), True
    if name == "linalg_solve_triangular":
        columns = -1 if kwargs.get("left", True) else -2
        apart = dim < -2 or (dim == columns and len(moved) == 1 and tensor is args[1] and once)
        return (dim if apart else None), True
    if name == "convolution":
        return (dim if place == 0 and alone else None), True
    if plain in _SCATTERS:
        own = all(t.dim() == result.dim() for t in moved)
        return (dim, True) if own and args[1] % result.dim() != place else (None, own)
    if name in _ALONG and alone:
        at, unless = _ALONG[name]
        given = args[at] if len(args) > at else kwargs.get("dim", unless)
        dims = [d % tensor.dim() for d in (given if isinstance(given, list | tuple) else [given]) if d is not None]
        if not dims or place in dims:
            return None, True
        return (place - sum(d < place for d in dims) - result.dim() if result.dim() < tensor.dim() else dim), True
    if name == "index" and alone:
        return _of_indexed(tensor, args[1], place, result), True
    if name in ("index_select", "embedding") and len(moved) == 1 and tensor is not args[0]:
        return (args[1] % result.dim() - result.dim() if name == "index_select" else dim - 1), True
    if name == "native_layer_norm":
        return (dim, True) if -dim > len(args[1]) and alone else (None, False)
    found = axis_after(func, args, kwargs, result, moved, lambda _: dim)
    return found, found is None and (name in _OF_ONE or (name == "gather" and tensor is args[0]))


def _of_indexed(table: Tensor, indices: Sequence[Any], place: int, result: Tensor) -> int | None:
    """Where `table[:, i, j]` has a dim of the table, if that is not one of those that the indices go through."""
    given = [at for at, index in enumerate(indices) if index is not None]
    if place in given or any(indices[at].dtype in (torch.bool, torch.uint8) for at in given):
        return None
    wide = max(indices[at].dim() for at in given)
    beside = given == list(range(given[0], given[-1] + 1))
    before = sum(at < place for at in given)
    now = place - before + (wide if before or not beside else 0)
    return now - result.dim()


def _of_matrices(
    args: Sequence[Any], first: int, result: Tensor, moved: Sequence[Tensor], dim: int
) -> tuple[int | None, bool]:
    """The same for a product of matrices, or of batches of them."""
    one, other = args[first], args[first + 1]
    if dim == -3:
        return -3, True
    if one is other:
        return None, True
    if any(tensor is not one and tensor is not other for tensor in moved):
        return (dim, True) if len(moved) == 1 else (None, False)  # what is added
    if all(tensor is one for tensor in moved) and dim == -2:
        return -2, True
    if all(tensor is other for tensor in moved) and dim == -1:
        return -1, True
    return None, True


class _MarkElements(SiteMessenger):
    """Marks draws as they are made, or met again in the model, with the elements of their plates, and their rows."""

    def __init__(self, elements: Elements, draws: Collection[str], rows_dim: int | None) -> None:
        super().__init__()
        self.elements = elements
        self.draws = draws
        self.rows_dim = rows_dim

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not (is_latent(msg) and msg["name"] in self.draws and isinstance(value, Tensor)):
            return
        event = msg["fn"].event_dim
        at = {p.name: Place(p.dim - event, 1, p.size) for p in plates_of(msg) if p.vectorized and p.size > 1}
        with unseen():
            if self.rows_dim is not None:
                dim = self.rows_dim - event
                if value.dim() >= -dim and value.shape[dim] > 1:
                    at[ROWS_PLATE] = Place(dim, 1, value.shape[dim])
            self.elements.mark_elements(value, msg["name"], at)


def _said(
    elements: Elements,
    traces: tuple[Trace, Trace],
    parts: tuple[Mapping[str, Parts], Mapping[str, Parts]],
    rows_dim: int | None,
) -> Followed:
    mixed: dict[str, str] = {}
    unknown: dict[str, str] = {}
    reached: dict[tuple[int, str], Names] = {}
    for where, trace in enumerate(traces):
        for name, each in parts[where].items():
            dims = {p.name: p.dim for p in plates_of(trace.nodes[name]) if p.dim is not None}
            if rows_dim is not None:
                dims[ROWS_PLATE] = rows_dim
            reached[where, name] = elements.of(*each)
            for part in each:
                for plate, at in elements.elements_of(part).items():
                    if plate not in dims or (at is not None and at is not MIXED and _is_at(at, dims[plate])):
                        continue
                    (unknown if at is None else mixed).setdefault(plate, name)
    return Followed(elements.escape, mixed, unknown, reached)


def _is_at(at: Place, dim: int) -> bool:
    own = at.dim == dim and at.inner == 1
    return own and all(element in (place, NONE) for place, element in enumerate(at.of))


def _parts(elements: Elements, sites: Mapping[str, Any]) -> dict[str, Parts]:
    """The parts of all sites' terms. Those of laws that score entries by themselves are not followed, but said: of a
    chain's steps, which have few operations otherwise, that takes half the time."""
    laws = {name: law for name, msg in sites.items() if (law := entries_of_law(msg)) is not None}
    with elements.unwatched():
        together = scored_together({name: sites[name] for name in laws})
        # each is a tensor of its own, of which can be noted what it comes from
        scores = {n: together[n].clone() if n in together else _scored(law.fn, sites[n]) for n, law in laws.items()}
    found = {}
    for name, msg in sites.items():
        score, law = scores.get(name), masked_law(msg)
        if score is None:
            score = site_log_prob(msg)
        else:
            elements.scored(score, laws[name], msg["value"])
        hidden = score if law is msg["fn"] else None if law is None else law.log_prob(msg["value"])
        found[name] = Parts(score, hidden, msg["scale"], msg["mask"])
    return found


def _scored(fn: Any, msg: Any) -> Tensor:
    """A site's log-probability; `fn`, its distribution, keeps none of the parameters that it makes for that: another
    site may have it too, and what it makes of these is followed."""
    held = {**vars(fn)}
    try:
        return site_log_prob(msg)
    finally:
        vars(fn).clear()
        vars(fn).update(held)

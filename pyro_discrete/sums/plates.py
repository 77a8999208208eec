"""Sums over enumerated dims inside plates: plate by plate, or element by element where plates lie beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

from pyro_discrete.sums.elimination import Elimination, SizesAlone, Table, dims_of, named, selected

__all__ = [
    "CrossedPlatesError",
    "PlatedTerm",
    "connected",
    "contract_plates",
]


UNROLLED = 64
"""So many elements of a plate are taken one by one, at most: of two values each, no table would hold more."""


SMALL_TABLE = 2**20
"""Elements of a table that need be no smaller."""


@dataclass(frozen=True, eq=False)
class PlatedTerm:
    """A log-probability with its dims' symbols, and the symbols of the plates that it is in."""

    plates: frozenset[str]
    value: Any


class CrossedPlatesError(Exception):
    """A sum joins the elements of plates of which neither is inside the other; `width` of them at least."""

    def __init__(self, width: int) -> None:
        super().__init__(f"a table over the values of {width} elements at least")
        self.width = width


def connected(terms: Sequence[Any], keys: Callable[[Any], Iterable[Hashable]]) -> list[list[Any]]:
    """The terms in groups that share keys, directly or through others; in their order."""
    group: dict[Hashable, list[int]] = {}
    found: list[list[int]] = []
    for i, term in enumerate(terms):
        own, joined = list(keys(term)), [i]
        for other in {id(group[k]): group[k] for k in own if k in group}.values():
            small, joined = sorted((joined, other), key=len)
            joined += small
            for j in small:
                group.update(dict.fromkeys(keys(terms[j]), joined))
        group.update(dict.fromkeys(own, joined))
        if not own:
            found.append(joined)
    found += {id(g): g for g in group.values()}.values()
    return [[terms[i] for i in group] for group in sorted(sorted(g) for g in found)]


def contract_plates(
    terms: Sequence[PlatedTerm], inside: Mapping[str, frozenset[str]], ring: Elimination
) -> tuple[frozenset[str], Any]:
    """The sum of the terms' product over every dim of `inside`, which says in which plates each of them is drawn.

    The terms hang together by these dims. Plates that not all of them are in are multiplied out, the innermost first.
    Where a term joins draws of plates beside each other, the elements of as few plates as will do are taken one by
    one, each with dims of its own: the choice whose largest table is the smallest. The sum then grows exponentially
    with these plates' sizes, and no way of elimination keeps it from that.

    Returns the plates left and the sum, `[*these plates, *other dims]`. Raises `CrossedPlatesError` where there are too
    many elements to try.

    Source: Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs, algorithm 1; Koller and
    Friedman (2009), Probabilistic graphical models, section 9.4.
    """
    try:
        return _plate_by_plate(terms, inside, ring)
    except _NotNestedError:
        signature = tuple((t.plates, dims_of(t.value), tuple(t.value.shape)) for t in terms)
        for plate in _to_unroll(signature, tuple(inside.items())):
            terms, inside = _unrolled(terms, inside, plate)
        return _plate_by_plate(terms, inside, ring)


class _NotNestedError(Exception):
    """Plates are not nested in each other."""


def _plate_by_plate(
    terms: Sequence[PlatedTerm], inside: Mapping[str, frozenset[str]], ring: Elimination
) -> tuple[frozenset[str], Any]:
    shared = frozenset.intersection(*(t.plates for t in terms))
    tree: dict[frozenset[str], list[Any]] = {}
    home: dict[str, frozenset[str]] = {}
    for term in terms:
        tree.setdefault(term.plates, []).append(term.value)
        for dim in dims_of(term.value):
            if dim in inside:
                home[dim] = home.get(dim, term.plates) & term.plates
    ring.begin(home)
    while tree.keys() != {shared}:
        leaf = max(tree, key=len)
        own = {dim for dim, plates in home.items() if plates == leaf}
        for part in connected(tree.pop(leaf), lambda value, own=own: [d for d in dims_of(value) if d in own]):
            made = ring.sumproduct(part, own & {d for value in part for d in dims_of(value)})
            parent = shared.union(*(home[d] for d in dims_of(made) if d in home))
            if parent == leaf:
                raise _NotNestedError
            tree.setdefault(parent, []).append(ring.product(made, leaf - parent))
    return shared, ring.sumproduct(tree[shared], {dim for dim, plates in home.items() if plates == shared})


def _unrolled(
    terms: Sequence[PlatedTerm], inside: Mapping[str, frozenset[str]], plate: str
) -> tuple[list[PlatedTerm], dict[str, frozenset[str]]]:
    """The same sum with a plate's elements one by one: dims drawn inside it are another for each."""
    size = max(dict(zip(dims_of(t.value), t.value.shape, strict=True)).get(plate, 1) for t in terms)
    drawn = [dim for dim, plates in inside.items() if plate in plates]
    following = max(ord(FIRST_UNROLLED), *(ord(dim) + 1 for dim in inside))
    renamed = [{dim: chr(following + i * len(drawn) + j) for j, dim in enumerate(drawn)} for i in range(size)]
    found: list[PlatedTerm] = []
    for term in terms:
        if plate not in term.plates:
            found.append(term)
            continue
        for i, names in enumerate(renamed):
            value = selected(term.value, plate, i)
            dims = "".join(names.get(d, d) for d in dims_of(value))
            found.append(PlatedTerm(term.plates - {plate}, named(value, dims)))
    within = {dim: plates for dim, plates in inside.items() if plate not in plates}
    within |= {names[dim]: inside[dim] - {plate} for names in renamed for dim in drawn}
    return found, within


FIRST_UNROLLED = chr(0x40000)
"""Symbols of dims of single elements are characters from here on."""


@lru_cache(maxsize=256)
def _to_unroll(
    signature: tuple[tuple[frozenset[str], str, tuple[int, ...]], ...], inside: tuple[tuple[str, frozenset[str]], ...]
) -> tuple[str, ...]:
    """The plates whose elements are to be taken one by one, for terms of these plates, dims and sizes."""
    terms = [PlatedTerm(plates, Table(shape, dims)) for plates, dims, shape in signature]
    shared = frozenset.intersection(*(t.plates for t in terms))
    loose = [(d, n) for plates, dims, sizes in signature for d, n in zip(dims, sizes, strict=True) if d in plates]
    sizes = {d: n for d, n in loose if d not in shared}
    few = sorted((d for d in sizes if sizes[d] <= UNROLLED), key=sizes.__getitem__)
    best: tuple[int, tuple[str, ...]] | None = None
    for count in range(1, 1 + len(few)):
        for plates in combinations(few, count):
            if math.prod(sizes[p] for p in plates) > UNROLLED**2:
                continue
            made, within = terms, dict(inside)
            for plate in plates:
                made, within = _unrolled(made, within, plate)
            ring = SizesAlone()
            try:
                _plate_by_plate(made, within, ring)
            except _NotNestedError:
                continue
            if best is None or ring.largest < best[0]:
                best = ring.largest, plates
        if best is not None and best[0] <= SMALL_TABLE:
            break  # more elements one by one would take longer
    if best is None:
        raise CrossedPlatesError(min((n for n in sizes.values() if n > UNROLLED), default=UNROLLED))
    return best[1]

"""The cost that each site influences, from the cost terms of a run: over plates and over the order of drawing.

A site's learning signal leaves out the terms that it cannot influence. Where the program's dependencies are known
(`Dependencies`), these are the terms that are not computed from its draw; where they are not:

- terms drawn before it: a guide term before the site, a model term before the site and before every guide site that is
  drawn after it;
and in either case

- other elements' terms of the plates that it is in - unless a later guide site outside the plate could carry the
  influence across (z_i -> h -> x_j): from that site on, the plate's terms are summed into every element's cost. So they
  are from the site itself on in a plate whose elements share terms (x_j reads z_i).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import accumulate, pairwise
from operator import add
from typing import Any, NamedTuple, Protocol

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.programs.dims import Frames, subsampling_scale
from pyro_discrete.programs.sites import first

__all__ = [
    "NEVER",
    "Attribution",
    "Costs",
    "Order",
    "Orders",
    "SiteCosts",
    "Term",
]


NEVER = 1 << 60


class Term(NamedTuple):
    """One cost term: `-log p` or `+log q` of a site, scaled and masked, `[n, *batch]`."""

    value: Tensor
    plates: Frames
    in_model: bool
    position: int
    name: str = ""


class Order:
    """Where guide sites are drawn and where the model reads them: what a site can influence is what comes after."""

    def __init__(
        self,
        guide_sites: Mapping[str, Frames],
        model_positions: Mapping[str, int],
        dependencies: Dependencies = UNKNOWN,
    ) -> None:
        self.dependencies = dependencies
        self.names: list[str] = list(guide_sites)
        self.position: dict[str, int] = {name: i for i, name in enumerate(self.names)}
        self.plates: dict[str, Frames] = dict(guide_sites)
        self.first_in_model: list[int] = [NEVER] * (len(self.names) + 1)
        for i in range(len(self.names) - 1, -1, -1):
            self.first_in_model[i] = min(self.first_in_model[i + 1], model_positions.get(self.names[i], NEVER))
        self._outside: dict[CondIndepStackFrame | str, list[int]] = {}
        self._attributions: dict[Any, Attribution] = {}
        self._scales: dict[str, float] = {}

    def scale(self, name: str) -> float:
        """What subsampled plates multiply the named guide site's costs by."""
        if name not in self._scales:
            self._scales[name] = subsampling_scale(self.plates[name])
        return self._scales[name]

    def attribution(self, terms: Sequence[Term]) -> Attribution:
        """Which of these terms make up each site's cost: the same for the terms of every run of the same sites."""
        key = tuple([term[1:] for term in terms])
        if key not in self._attributions:
            if len(self._attributions) >= KEPT:
                self._attributions.clear()
            self._attributions[key] = Attribution(terms, self)
        return self._attributions[key]

    def start(self, position: int, in_model: bool) -> int:
        """Position of the first model or guide term that the guide site at `position` may influence by its place."""
        return self.first_in_model[position] if in_model else position

    def escapes(self, name: str) -> dict[CondIndepStackFrame, int]:
        """The site's plates that a later guide site is outside of, with the position of the first such site; those
        whose elements share terms, with that of the site itself."""
        found: dict[CondIndepStackFrame, int] = {}
        if not self.dependencies.plates and self.position[name] == len(self.names) - 1:
            return found  # no site is drawn after it
        for plate in self.plates[name]:
            if plate.name in self.dependencies.plates:
                found[plate] = self.position[name]
                continue
            outside = self._positions_outside(plate)
            later = outside[bisect_right(outside, self.position[name]) :]
            reached = next((p for p in later if self.dependencies.downstream(name, self.names[p])), None)
            if reached is not None:
                found[plate] = reached
        return found

    def _positions_outside(self, plate: CondIndepStackFrame) -> list[int]:
        """Positions of the guide sites outside a plate; for a sequential one, outside all of its iterations."""
        key = plate if plate.vectorized else plate.name
        if key not in self._outside:
            every = enumerate(self.plates.values())
            if plate.vectorized:
                self._outside[key] = [i for i, plates in every if plate not in plates]
            else:
                self._outside[key] = [i for i, plates in every if all(p.name != key for p in plates)]
        return self._outside[key]


KEPT = 16
"""For so many kinds of runs it is kept how they go: there are more where batches are of ever new sizes."""


class Orders:
    """The orders of runs, each made once for all runs of the same sites in the same plates.

    With them it is kept which terms make up each site's cost, so that a step adds up numbers alone. A step of a belief
    network of 64 and 20 units takes 0.96 of the time that it takes where each step looks for them.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Order] = {}

    def __reduce__(self) -> tuple[type[Orders], tuple[()]]:
        """A copy begins anew."""
        return Orders, ()

    def of(self, guide_sites: Mapping[str, Frames], model_sites: Iterable[str], dependencies: Dependencies) -> Order:
        """The order of a run with these sites, and the plates of the guide's.

        Plates are told apart as objects, which an order that is kept keeps alive: equal ones may be parts of data of
        other sizes.
        """
        model_sites = tuple(model_sites)
        key = dependencies, tuple([(name, id(plates)) for name, plates in guide_sites.items()]), model_sites
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            positions = {name: position for position, name in enumerate(model_sites)}
            self._known[key] = Order(guide_sites, positions, dependencies)
        return self._known[key]


class _Sums:
    """Sums of terms that were not computed yet, told apart by number; the first ones are the terms themselves."""

    def __init__(self, terms: int) -> None:
        self.made: list[tuple[Any, ...]] = [()] * terms
        self._known: dict[tuple[Any, ...], int] = {}

    def _number(self, *how: Any) -> int:
        if how not in self._known:
            self._known[how] = len(self.made)
            self.made.append(how)
        return self._known[how]

    def is_of_all(self, number: int, terms: int) -> bool:
        """Whether one is the first so many added up, each once, and nothing else."""
        found, open_ones = [], [number]
        while open_ones and len(found) <= terms:
            how, parts, _ = self.made[open_ones[-1]] or (None, (), None)
            if how is None:
                found.append(open_ones.pop())
            elif how is _added:
                open_ones[-1:] = parts
            else:
                return False
        return sorted(found) == [*range(terms)]

    def add(self, one: int, other: int) -> int:
        """Two of them added up."""
        return self._number(_added, (one, other), None)

    def over(self, one: int, dim: int) -> int:
        """One, summed over a dim that stays, of size 1."""
        return self._number(_summed, (one,), dim)

    def for_each(self, one: int, plates: Iterable[CondIndepStackFrame]) -> int:
        """One that elements of these plates have in common, for each of them."""
        kept = tuple((p.dim, p.size) for p in plates if p.dim is not None)
        return self._number(_expanded, (one,), kept) if kept else one


def _added(parts: Sequence[Tensor], _: None) -> Tensor:
    return parts[0] + parts[1]


def _summed(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0].sum(dim, keepdim=True)


def _expanded(parts: Sequence[Tensor], plates: Sequence[tuple[int, int]]) -> Tensor:
    total = parts[0]
    for dim, size in plates:
        if total.shape[dim] == 1:
            total = total.expand(*total.shape[:dim], size, *total.shape[total.dim() + dim + 1 :])
    return total


@dataclass
class _Group:
    """The terms of the guide or the model in one set of plates, by number in order, with their sums to the last."""

    made: _Sums
    in_model: bool
    plates: Frames
    positions: list[int]
    values: list[int]
    names: list[str]
    iterations: tuple[tuple[str, int], ...]
    sums: list[int] | None = None
    sums_of: dict[tuple[int, ...], int] = field(default_factory=dict)

    def between(self, low: int, high: int, chosen: tuple[int, ...] | None = None) -> int | None:
        """Sum of the terms at positions low <= p < high, and among those `chosen`; None if there are none."""
        first = bisect_left(self.positions, low)
        last = len(self.positions) if high >= NEVER else bisect_left(self.positions, high)
        if chosen is not None:
            chosen = tuple(i for i in chosen if first <= i < last)
            if len(chosen) != last - first:
                return self._sum_of(chosen)
        if first >= last:
            return None
        if last < len(self.values):
            return reduce(self.made.add, self.values[first:last])
        if self.sums is None:
            self.sums = list(accumulate(reversed(self.values), self.made.add))[::-1]
        return self.sums[first]

    def _sum_of(self, chosen: tuple[int, ...]) -> int | None:
        if chosen and chosen not in self.sums_of:
            values = [self.values[i] for i in chosen]
            # what the last ones have in common with the sums from each to the last need not be added again
            tail = next((k for k, i in enumerate(chosen) if len(chosen) - k == len(self.values) - i), None)
            rest = self.between(self.positions[chosen[tail]], NEVER) if tail is not None else None
            self.sums_of[chosen] = reduce(self.made.add, values[:tail] + ([rest] if rest is not None else []))
        return self.sums_of.get(chosen)


class Attribution:
    """Which terms make up the cost of each site: sums to be made of the terms of a run, none of which is made here."""

    def __init__(self, terms: Sequence[Term], order: Order) -> None:
        self.order: Order = order
        self.made: _Sums = _Sums(len(terms))
        self.terms: int = len(terms)
        groups: dict[tuple[bool, Frames], _Group] = {}
        for number, term in enumerate(terms):
            key = (term.in_model, term.plates)
            if key not in groups:
                groups[key] = _Group(self.made, *key, [], [], [], _iterations(term.plates))
            groups[key].names.append(term.name)
            groups[key].positions.append(term.position)
            groups[key].values.append(number)
        self.groups: list[_Group] = list(groups.values())
        self._of: dict[tuple[str, bool], int | None] = {}
        self._crossed: dict[str, Frames] = {}

    def of(self, name: str, local: bool) -> int | None:
        """See `Costs.of`."""
        key = name, local
        if key not in self._of:
            self._of[key] = self._found(name, local)
        return self._of[key]

    @cached_property
    def whole(self) -> int | None:
        """The sum of all terms, each once and over no plate, where the first site's cost is that."""
        numbers = [self.of(name, local) for name in self.order.names[:1] for local in (True, False)]
        return next((n for n in numbers if n is not None and self.made.is_of_all(n, self.terms)), None)

    def _found(self, name: str, local: bool) -> int | None:
        plates, escapes = self.order.plates[name], self.order.escapes(name)
        fixed = dict(_iterations(p for p in plates if p not in escapes))
        total: int | None = None
        for group in self.groups:
            if group.iterations and any(fixed.get(plate, count) != count for plate, count in group.iterations):
                continue
            start, chosen = self._reach(name, group) if local else (0, None)
            breaks = {plate: self.order.start(p, group.in_model) for plate, p in escapes.items()}
            inner = sorted(b for b in set(breaks.values()) if start < b < NEVER) if breaks else ()
            for low, high in pairwise((start, *inner, NEVER)):
                kept = plates if not breaks else {p for p in plates if breaks.get(p, NEVER) > low}
                inside = dict(_iterations(kept)) if breaks else fixed
                if breaks and any(inside.get(plate, count) != count for plate, count in group.iterations):
                    continue
                value = group.between(low, high, chosen)
                if value is None:
                    continue
                for frame in group.plates if group.plates is not kept else ():
                    if frame.dim is not None and frame not in kept:
                        value = self.made.over(value, frame.dim)
                total = value if total is None else self.made.add(total, value)
        return None if total is None else self.made.for_each(total, escapes)

    def _reach(self, name: str, group: _Group) -> tuple[int, tuple[int, ...] | None]:
        """The group's terms that a site may influence: the first position, and which from there on (None: all)."""
        if not self.order.dependencies.known:
            return self.order.start(self.order.position[name], group.in_model), None
        return 0, self.order.dependencies.influenced(name, group.in_model, tuple(group.names))

    def _touches(self, name: str, group: _Group) -> bool:
        start, chosen = self._reach(name, group)
        return group.positions[-1] >= start if chosen is None else bool(chosen)

    def crossed_plates(self, name: str) -> Frames:
        """See `Costs.crossed_plates`."""
        if name not in self._crossed:
            self._crossed[name] = self._crossed_by(name)
        return self._crossed[name]

    def _crossed_by(self, name: str) -> Frames:
        plates = frozenset(p for p in self.order.plates[name] if p.dim is not None)
        if not plates:
            return plates
        escapes = self.order.escapes(name)
        fixed = dict(_iterations(p for p in self.order.plates[name] if p not in escapes))
        crossed = {p for p in escapes if p.dim is not None}
        for group in self.groups:
            here = all(fixed.get(plate, count) == count for plate, count in group.iterations)
            if here and not plates <= group.plates and self._touches(name, group):
                crossed |= plates - group.plates
        return frozenset(crossed)


class SiteCosts(Protocol):
    """The cost behind each guide site of a run."""

    @property
    def order(self) -> Order: ...
    def of(self, name: str, local: bool = True) -> Tensor | None: ...
    def totals(self) -> Tensor: ...
    def crossed_plates(self, name: str) -> Frames: ...


class Costs:
    """The terms of one run, and from them each site's cost."""

    def __init__(self, terms: Sequence[Term], order: Order) -> None:
        self._take([term.value for term in terms], order.attribution(terms))

    @staticmethod
    def known(values: Sequence[Tensor], attribution: Attribution) -> Costs:
        """Those of terms of these values, of which it is known what they make up."""
        costs = Costs.__new__(Costs)
        costs._take(values, attribution)
        return costs

    def _take(self, values: Sequence[Tensor], attribution: Attribution) -> None:
        self.order: Order = attribution.order
        self._attribution = attribution
        self._terms = values
        self._values: dict[int, Tensor] = dict(enumerate(values))

    def of(self, name: str, local: bool = True) -> Tensor | None:
        """The cost that the named site influences, `[n, *batch]`; None if no term comes after it.

        With `local=False` terms that the site cannot influence stay in, but for other elements' of its plates.
        """
        number = self._attribution.of(name, local)
        return None if number is None else self._value(number)

    def _value(self, number: int) -> Tensor:
        """The sum of this number, and all that it is made of, computed once."""
        values, made, open_ones = self._values, self._attribution.made.made, [number]
        while open_ones:
            last = open_ones[-1]
            missing = [] if last in values else [part for part in made[last][1] if part not in values]
            if missing:
                open_ones.extend(missing)
                continue
            if last not in values:
                how, parts, setting = made[last]
                values[last] = how([values[part] for part in parts], setting)
            open_ones.pop()
        return values[number]

    def sum(self, rows: int | None = None) -> Tensor | float:
        """All terms, each once, summed over all rows or the first so many; detached.

        The sum behind a site's cost serves here too, if it is of them all. Else terms of one shape are added up first.
        """
        terms, number = self._terms, self._attribution.whole
        whole = None if number is None else self._value(number)
        if whole is None or any(term.shape != whole.shape for term in terms):
            by_shape: dict[torch.Size, Tensor] = {}
            for term in terms:
                known = by_shape.get(term.shape)
                by_shape[term.shape] = term if known is None else known + term
        else:
            by_shape = {whole.shape: whole}
        sums = [(each if rows is None else first(each, rows)).sum() for each in by_shape.values()]
        total = reduce(add, sums) if sums else 0.0
        return total.detach() if isinstance(total, Tensor) and total.requires_grad else total

    def totals(self) -> Tensor:
        """Each row's total cost, every term once: `[n]`."""
        values = [self._values[number] for group in self._attribution.groups for number in group.values]
        return torch.stack([value.reshape(len(value), -1).sum(1) for value in values]).sum(0)

    def crossed_plates(self, name: str) -> Frames:
        """The site's plates whose elements share terms of its cost: terms outside of the plate, or a later guide site
        outside that carries the influence of one element to another's terms."""
        return self._attribution.crossed_plates(name)


def _iterations(plates: Iterable[CondIndepStackFrame]) -> tuple[tuple[str, int], ...]:
    """The sequential plates among `plates`, each with its iteration."""
    return tuple((p.name, p.counter) for p in plates if p.dim is None)

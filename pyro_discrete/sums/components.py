"""The log-probabilities that depend on enumerated values, by connected component: their sums, and what these cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import Independent

from pyro_discrete.draws.log_space import Reduce
from pyro_discrete.errors import EnumerationError, SiteShapeError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.places import Along, At
from pyro_discrete.programs.alike_sites import scored_together
from pyro_discrete.programs.sites import sample_sites, site_log_prob
from pyro_discrete.sums.elimination import Elimination, SizesAlone
from pyro_discrete.sums.enumerated_sites import BUDGET, IN_GUIDE, BudgetError, ByParts, Marginalise, PairsError
from pyro_discrete.sums.factors import Component, Factor, Parts
from pyro_discrete.sums.plates import CrossedPlatesError, PlatedTerm, connected, contract_plates
from pyro_discrete.sums.structures import structures_summed

__all__ = [
    "SCALE_OF_VALUES",
    "Names",
    "SumCost",
    "component_cost",
    "components",
    "contract",
    "joined_factors",
    "magnitude",
    "shares",
    "symbol_of",
    "unpacked",
]


FIRST_SYMBOL = 0x10000
"""Symbols of dims are characters from here on, in the order of their sites."""


@dataclass
class Names:
    """Symbols for enumerated sites (by number) and for plates."""

    plates: dict[tuple[str, int], str] = field(default_factory=dict)
    frames: dict[str, CondIndepStackFrame] = field(default_factory=dict)

    def of_plate(self, frame: CondIndepStackFrame) -> str:
        key = (frame.name, frame.dim or 0)
        if key not in self.plates:
            self.plates[key] = chr(FIRST_SYMBOL - 1 - len(self.plates))
            self.frames[self.plates[key]] = frame
        return self.plates[key]


def symbol_of(number: int) -> str:
    """The symbol of the enumerated site of this number."""
    return chr(FIRST_SYMBOL + number)


def components(model_trace: Trace, marginalise: Marginalise) -> tuple[list[Component], Names]:
    """The trace's factors with enumerated dims, by connected component."""
    names, factors = Names(), []
    with marginalise.watching():
        reached = [
            (position, name, msg)
            for position, (name, msg) in enumerate(sample_sites(model_trace).items())
            if name in marginalise.own or _reaches_left(msg, marginalise.given.first) or _is_followed(msg, marginalise)
        ]
        scores = scored_together({name: msg for _, name, msg in reached}) if marginalise.parts is None else {}
        for position, name, msg in reached:
            factors.append(_factor(name, position, msg, marginalise, names, scores.get(name)))
    if marginalise.parts is not None and marginalise.parts.escape:
        raise _not_by_parts(
            sorted(marginalise.by_parts), f"what reads them cannot be followed: {marginalise.parts.escape}"
        )
    _check_plates(factors, marginalise, names)
    inside = {symbol_of(marginalise.own[f.name]): f.plates for f in factors if f.name in marginalise.own}
    return joined_factors(factors, inside, marginalise.own), names


def joined_factors(
    factors: Sequence[Factor], inside: Mapping[str, frozenset[str]], own: Collection[str]
) -> list[Component]:
    """Factors by connected component, in the order of their first ones; `own` are the sites that are summed out."""
    found = []
    for group in connected(factors, lambda factor: factor.symbols):
        symbols = frozenset[str]().union(*(f.symbols for f in group))
        sites = [f.name for f in group if f.name in own]
        found.append(Component(group, {s: inside[s] for s in symbols if s in inside}, sites))
    return found


def _reaches_left(msg: Any, first: int) -> bool:
    """Whether a site's term has a dim left of rows and plates: by its distribution, value, mask or scale."""
    value, fn = msg["value"], msg["fn"]
    dims = [len(getattr(fn, "batch_shape", ())), *(t.dim() for t in (msg["mask"], msg["scale"]) if torch.is_tensor(t))]
    return max(dims[0], value.dim() - fn.event_dim if torch.is_tensor(value) else 0, *dims) >= -first


def _factor(
    name: str, position: int, msg: Any, marginalise: Marginalise, names: Names, log_p: Tensor | None = None
) -> Factor:
    """A site's factor; `log_p`: its log-probability, where that is known."""
    first = marginalise.given.first
    parts, dims_behind = None, ""
    if isinstance(msg["fn"], ByParts):
        parts, log_p = _own_parts(name, msg, marginalise)
        dims_behind = parts.along
    elif log_p is None:
        log_p = site_log_prob(msg)
        if marginalise.parts is not None:
            log_p, parts = _by_places(name, msg, log_p, marginalise)
            dims_behind = parts.along if parts is not None else ""
    if marginalise.masked or name not in marginalise.own:
        mask = msg["mask"]
        if dims_behind and torch.is_tensor(mask):
            mask = mask.unsqueeze(-1)
        log_p = scale_and_mask(log_p, mask=mask)
    if torch.is_tensor(msg["scale"]) and msg["scale"].dim() >= -first and msg["scale"].numel() > 1:
        raise EnumerationError(SCALE_OF_VALUES.format(name=name, shape=tuple(msg["scale"].shape)))
    at = {f.dim: names.of_plate(f) for f in msg["cond_indep_stack"] if f.dim is not None}
    places = at | {dim: symbol_of(n) for dim, n in marginalise.dims.get(name, {}).items() if dim <= first}
    symbols = ""
    for dim, size in enumerate(log_p.shape, start=len(dims_behind) - log_p.dim()):
        if dim >= 0:
            continue
        if size > 1:
            if dim in places:
                symbols += places[dim]
            else:
                raise SiteShapeError(
                    f"Site {name!r} has a log-probability of shape {tuple(log_p.shape)}, whose dim {dim} is in no "
                    "plate and belongs to no enumerated site. Index from the right, so that dims on the left broadcast."
                )
    kept = [n for i, n in enumerate(log_p.shape) if n > 1 or (dims_behind and i == log_p.dim() - 1)]
    packed = log_p.reshape(kept) if 1 in log_p.shape else log_p.clone()  # a tensor of its own, to carry the symbols
    packed._pyro_dims = symbols + dims_behind  # type: ignore[attr-defined]
    plates = frozenset(at.values())
    own = symbol_of(marginalise.own[name]) if name in marginalise.own else ""
    if parts is not None and parts.structure is not None:
        parts = replace(parts, logits=_symbols_of_logits(parts.structure, places))
        symbols += parts.logits
    return Factor(name, position, packed, frozenset(symbols) - plates, plates, msg, own, places, parts)


def _is_followed(msg: Any, marginalise: Marginalise) -> bool:
    """Whether a site's term comes from a structure that is summed by its partition function."""
    places = marginalise.parts
    return places is not None and bool(places.of(site_log_prob(msg), msg["mask"], msg["scale"]))


FIRST_PLACES = 0x30000
"""Symbols of the dims of a structure's places are characters from here on, in the order of their sites."""


def _own_parts(name: str, msg: Any, marginalise: Marginalise) -> tuple[Parts, Tensor]:
    """A structure's own factor: weights of zero of numbers at places, `[numbers, ..., *batch, places]`."""
    number, fn = marginalise.own[name], msg["fn"]
    value, structure = msg["value"], fn.fn
    assert marginalise.parts is not None
    before = sorted(marginalise.parts.of(structure.logits))
    if before:
        raise _not_by_parts(before, f"the prior of site {name!r}, another structure, reads them")
    shape = [*torch.broadcast_shapes(value.shape[:-1], fn.batch_shape)]
    shape[msg["infer"]["_enumerate_dim"]] = structure.numbers  # weights are of single numbers
    zeros = structure.logits.new_zeros(*shape, value.shape[-1])
    return Parts(symbol_of(number), chr(FIRST_PLACES + number), structure=structure), zeros


def _symbols_of_logits(structure: Any, places: Mapping[int, str]) -> str:
    batch = structure.batch_shape
    return "".join(places[dim] for dim, size in enumerate(batch, start=-len(batch)) if size > 1)


def _by_places(name: str, msg: Any, log_p: Tensor, marginalise: Marginalise) -> tuple[Tensor, Parts | None]:
    """A term that reads a structure, with its entries place by place in a last dim; as it is where it reads none.

    Raises `EnumerationError` where it is not known to be a sum over places, or pairs of consecutive places of a chain,
    and `PairsError` where it is one of pairs whose values the run has not.
    """
    followed = marginalise.parts
    assert followed is not None
    weights = followed.of(msg["mask"], msg["scale"])
    sites = sorted(followed.of(log_p) | weights)
    if not sites:
        return log_p, None
    if weights:
        raise _not_by_parts(sorted(weights), f"a mask or scale around site {name!r} reads them")
    if len(sites) > 1:
        raise _not_by_parts(sites, f"the term of site {name!r} joins them")
    structure, width = marginalise.structures[sites[0]], marginalise.by_parts[sites[0]]
    number = marginalise.own[sites[0]]
    symbol, along = symbol_of(number), chr(FIRST_PLACES + number)
    added, found = followed.sum_of(log_p), followed.found(log_p)
    if isinstance(found, At) and found.width == 1:
        return log_p, Parts(symbol, "", found.place)
    if added is not None and added.width <= width:
        return added.table(structure.event_shape[0], width), Parts(symbol, along, width=width)
    if isinstance(found, At) and found.width <= width:
        return log_p, Parts(symbol, "", found.place, found.width)
    fn, events = msg["fn"], 0
    while isinstance(fn, Independent):
        fn, events = fn.base_dist, events + fn.reinterpreted_batch_ndims
    if events:
        each = fn.log_prob(msg["value"])
        found = followed.found(each)
        if isinstance(found, Along) and -found.axis <= events and found.width <= width:
            each = each.movedim(found.axis, -1)
            if events > 1:
                each = each.sum(tuple(range(-events, -1)))
            return each, Parts(symbol, along, found.start, found.width)
    widths = [known.width for known in (added, found) if known is not None]
    if 2 in widths and width == 1 and structure.defines("weighted_pairs"):
        raise PairsError(sites[0])
    why = f"the term of site {name!r} is not known to add up over its places"
    if widths:
        parts = "more than pairs" if structure.defines("weighted_pairs") else "pairs, which are no parts of it"
        why = f"the term of site {name!r} reads {min(widths)} places together ({parts})"
    raise _not_by_parts(sites, why)


def _not_by_parts(sites: Sequence[str], reason: str) -> EnumerationError:
    return EnumerationError(
        f"Site {_listed(sites)} has too many values to be listed, so that it is summed by its partition function, "
        "which takes terms that add up over places of the value: of one place each (z[..., i]), place by place (an "
        "event of Normal(table[z], 1.0).to_event(1)), sums of these (table[z].sum(-1) in a pyro.factor), and of a "
        f"LinearChain the same of a place and the next one; {reason}. Write what reads it so, make it smaller, or draw "
        f"it {IN_GUIDE}, by 'rloo' or a relaxation."
    )


SCALE_OF_VALUES = (
    "Site {name!r} has a poutine.scale of shape {shape}, which depends on a site that is summed out: a sum needs one "
    "scale for all of its terms. Put what depends on the site into the distribution or a pyro.factor, or draw the site "
    f"{IN_GUIDE}."
)


def _check_plates(factors: Sequence[Factor], marginalise: Marginalise, names: Names) -> None:
    """Refuse a site outside a plate that depends on a site enumerated inside it: elements would be taken in step."""
    inside = {symbol_of(marginalise.own[f.name]): f for f in factors if f.name in marginalise.own}
    for factor in factors:
        for symbol in factor.symbols:
            missing = inside[symbol].plates - factor.plates
            if missing:
                plates = ", ".join(sorted(repr(names.frames[p].name) for p in missing))
                raise EnumerationError(
                    f"Site {factor.name!r} outside plate {plates} depends on site {inside[symbol].name!r} inside it, "
                    "which is in the model alone: all joint values of the plate's elements would have to be summed "
                    f"over. Draw {inside[symbol].name!r} {IN_GUIDE}."
                )


def contract(component: Component, ring: Elimination | None = None) -> Tensor:
    """The component's marginal log-likelihood, packed: `[*plates that all of its factors are in]`."""
    ring = ring or Elimination()
    summed = structures_summed(component, ring)
    terms = [PlatedTerm(f.plates, f.value) for f in summed.factors]
    try:
        return contract_plates(terms, summed.inside, ring)[1]
    except CrossedPlatesError as error:
        raise EnumerationError(_not_nested(component, str(error))) from error


def _not_nested(component: Component, needs: str) -> str:
    return (
        f"Sites {_listed(component.sites)} of the model alone depend on each other across plates that are not nested "
        f"({_loose_plates(component)}), so that their sum grows exponentially with the plates' sizes: it needs "
        f"{needs}. Draw some of them {IN_GUIDE}."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")


def _loose_plates(component: Component) -> str:
    """The plates that not all factors of a component are in, with their sizes."""
    stacks = [{(p.name, p.size) for p in f.message["cond_indep_stack"] if p.vectorized} for f in component.factors]
    return ", ".join(f"{name!r} of {size}" for name, size in sorted(set().union(*stacks) - set.intersection(*stacks)))


def unpacked(term: Tensor, symbols: str, names: Names) -> Tensor:
    """A packed tensor with its plates where they belong, and what dims it has behind these as they are."""
    at = [names.frames[s].dim or 0 for s in symbols]
    behind = tuple(range(len(at), term.dim()))
    ordered = term.permute([*sorted(range(len(at)), key=at.__getitem__), *behind])
    shape = [1] * -min(at, default=0)
    for dim, size in zip(sorted(at), ordered.shape, strict=False):
        shape[dim] = size
    return ordered.reshape([*shape, *(term.shape[i] for i in behind)])


@dataclass(frozen=True)
class SumCost:
    """What an exact sum costs, in elements: its largest table, and all tables together (what has to be computed).

    `width`: how many draws the largest table joins.
    """

    largest: int = 0
    operations: int = 0
    width: int = 0

    def __str__(self) -> str:
        return f"largest table {magnitude(self.largest)} elements, {magnitude(self.operations)} operations"

    def beside(self, other: SumCost) -> SumCost:
        """Both, one after the other."""
        return SumCost(
            max(self.largest, other.largest), self.operations + other.operations, max(self.width, other.width)
        )

    def times(self, rows: int) -> SumCost:
        """As many at once."""
        return SumCost(self.largest * rows, self.operations * rows, self.width)

    def fits(self, settings: Enumerate) -> bool:
        """Whether it is within the budget."""
        return self.largest <= settings.max_elements and self.operations <= settings.max_operations


def magnitude(number: float) -> str:
    """Three digits of a number, of a whole one of any size."""
    try:
        return f"{number:.3g}"
    except OverflowError:
        return f"1e+{len(str(number)) - 1}"


def within_budget(component: Component, settings: Mapping[str, Enumerate]) -> SumCost:
    """A component's cost. Raises `BudgetError` if it is beyond the budget of its sites' settings."""
    cost = component_cost(component)
    allowed = [settings[name] for name in component.sites if name in settings] or [Enumerate()]
    if not any(cost.fits(each) for each in allowed):
        budget = max(allowed, key=lambda e: e.max_elements)
        needs = (
            f"a largest table of {magnitude(cost.largest)} elements, over the values of {cost.width} draws, and "
            f"{magnitude(cost.operations)} operations a row; at most {budget.max_elements:.3g} and "
            f"{budget.max_operations:.3g} are allowed ({BUDGET}, max_operations=...))"
        )
        if cost.width > len(component.inside):  # elements of plates by themselves
            raise BudgetError(_not_nested(component, needs))
        raise BudgetError(
            f"Summing out {len(component.sites)} site(s) of the model alone together ({_listed(component.sites)}) "
            f"needs {needs}. Put chains in pyro.markov and independent sites in a pyro.plate, or draw some of these "
            f"sites {IN_GUIDE}, by 'rloo' or 'nvil'."
        )
    return cost


def component_cost(component: Component) -> SumCost:
    """The cost of contracting a component, found by going the same way with the sizes alone."""
    ring = SizesAlone()
    contract(component, ring)
    tables = [f.value.numel() for f in component.factors]
    return SumCost(max(ring.largest, *tables), ring.operations + sum(tables), ring.width)


def shares(component: Component, names: Names, enumerated: Marginalise, reduce: Reduce) -> dict[str, Tensor]:
    """For each enumerated site of a component, its values' shares: `[(rows,) *batch, values]`, in float64."""
    for factor in component.factors:
        dims = factor.value._pyro_dims  # type: ignore[attr-defined]
        factor.value = factor.value.detach().double().requires_grad_(factor.name in enumerated.own)
        factor.value._pyro_dims = dims  # type: ignore[attr-defined]
    own = [f for f in component.factors if f.name in enumerated.own]
    with torch.enable_grad():
        total = contract(component, Elimination(reduce)).sum()
        gradients = torch.autograd.grad(total, [f.value for f in own])
    found = {}
    for factor, gradient in zip(own, gradients, strict=True):
        dims: str = factor.value._pyro_dims  # type: ignore[attr-defined]
        symbol = symbol_of(enumerated.own[factor.name])
        if factor.parts is not None and factor.parts.structure is None and factor.parts.along:
            gradient = gradient.select(dims.index(factor.parts.along), 0)  # a value is as probable at each of them
            dims = dims.replace(factor.parts.along, "")
        summed = [i for i, d in enumerate(dims) if d in factor.symbols and d != symbol]
        share = gradient.sum(summed) if summed else gradient
        kept = "".join(d for d in dims if d not in factor.symbols or d == symbol)
        if factor.parts is not None and factor.parts.structure is not None:  # of each number at each place
            share = share.movedim((kept.index(factor.parts.along), kept.index(symbol)), (-2, -1))
            kept = kept.replace(symbol, "").replace(factor.parts.along, "")
            found[factor.name] = unpacked(share, kept, names).flatten(-2)
            continue
        if symbol in kept:
            share = share.movedim(kept.index(symbol), -1)
            kept = kept.replace(symbol, "")
        else:
            share = share.unsqueeze(-1)  # a support of one value
        found[factor.name] = unpacked(share, kept, names)
    return found

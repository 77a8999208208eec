"""The log-probabilities that depend on enumerated values, by connected component: their sums, and what these cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_discrete.draws.log_space import Reduce, log_sum_exp
from pyro_discrete.errors import EnumerationError, SiteShapeError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.programs.sites import sample_sites, site_log_prob
from pyro_discrete.sums.elimination import Elimination, SizesAlone
from pyro_discrete.sums.enumerated_sites import BUDGET, IN_GUIDE, BudgetError, Marginalise
from pyro_discrete.sums.plates import CrossedPlatesError, PlatedTerm, connected, contract_plates

__all__ = [
    "SCALE_OF_VALUES",
    "Component",
    "Factor",
    "Names",
    "SumCost",
    "component_cost",
    "components",
    "contract",
    "highest",
    "joined_factors",
    "magnitude",
    "random_value",
    "shares",
    "symbol_of",
    "unpacked",
]


FIRST_SYMBOL = 0x10000
"""Symbols of dims are characters from here on, in the order of their sites."""


@dataclass(eq=False)
class Factor:
    """A log-probability that depends on enumerated values: `value` is packed (no dims of size 1, named by symbols).

    `own`: the symbol of the site itself, if it is summed out. `places`: the symbols of the dims of its message.
    """

    name: str
    position: int
    value: Tensor
    symbols: frozenset[str]
    plates: frozenset[str]
    message: Any
    own: str = ""
    places: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Component:
    """Factors that share enumerated dims, directly or through others: they are summed out together.

    `inside`: for each symbol that is summed over, the plates in which its site is drawn.
    """

    factors: list[Factor]
    inside: Mapping[str, frozenset[str]]
    sites: list[str]

    @property
    def label(self) -> str:
        """A name for the term that stands for the component."""
        shown = ", ".join([*self.sites[:3], "..."] if len(self.sites) > 3 else self.sites)
        return f"sum over {shown} (up to {self.factors[-1].name})"


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
    for position, (name, msg) in enumerate(sample_sites(model_trace).items()):
        if name in marginalise.own or _reaches_left(msg, marginalise.given.first):
            factors.append(_factor(name, position, msg, marginalise, names))
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


def _factor(name: str, position: int, msg: Any, marginalise: Marginalise, names: Names) -> Factor:
    first = marginalise.given.first
    log_p = site_log_prob(msg)
    if marginalise.masked or name not in marginalise.own:
        log_p = scale_and_mask(log_p, mask=msg["mask"])
    if torch.is_tensor(msg["scale"]) and msg["scale"].dim() >= -first and msg["scale"].numel() > 1:
        raise EnumerationError(SCALE_OF_VALUES.format(name=name, shape=tuple(msg["scale"].shape)))
    at = {f.dim: names.of_plate(f) for f in msg["cond_indep_stack"] if f.dim is not None}
    places = at | {dim: symbol_of(n) for dim, n in marginalise.dims.get(name, {}).items() if dim <= first}
    symbols = ""
    for dim, size in enumerate(log_p.shape, start=-log_p.dim()):
        if size > 1:
            if dim in places:
                symbols += places[dim]
            else:
                raise SiteShapeError(
                    f"Site {name!r} has a log-probability of shape {tuple(log_p.shape)}, whose dim {dim} is in no "
                    "plate and belongs to no enumerated site. Index from the right, so that dims on the left broadcast."
                )
    packed = log_p.squeeze() if 1 in log_p.shape else log_p.clone()  # a tensor of its own, to carry the symbols
    packed._pyro_dims = symbols  # type: ignore[attr-defined]
    plates = frozenset(at.values())
    own = symbol_of(marginalise.own[name]) if name in marginalise.own else ""
    return Factor(name, position, packed, frozenset(symbols) - plates, plates, msg, own, places)


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
    terms = [PlatedTerm(f.plates, f.value) for f in component.factors]
    try:
        return contract_plates(terms, component.inside, ring or Elimination())[1]
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


def highest(table: Tensor, dim: int) -> Tensor:
    """The largest value along a dim."""
    return table.max(dim).values


class _RandomValue(torch.autograd.Function):
    """A log-sum whose backward pass goes to one value, drawn by its share."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, dim: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table)
        ctx.dim = dim
        return log_sum_exp(table, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (table,) = ctx.saved_tensors
        noise = torch.empty_like(table).exponential_().log().neg()  # Gumbel
        chosen = (table + noise).argmax(ctx.dim, keepdim=True)
        return torch.zeros_like(table).scatter(ctx.dim, chosen, gradient.unsqueeze(ctx.dim)), None


def random_value(table: Tensor, dim: int) -> Tensor:
    """The log-sum along a dim; its gradient is one at a value drawn by its share, and zero at the others."""
    return _RandomValue.apply(table, dim)  # type: ignore[return-value]


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
        summed = [i for i, d in enumerate(dims) if d in factor.symbols and d != symbol]
        share = gradient.sum(summed) if summed else gradient
        kept = "".join(d for d in dims if d not in factor.symbols or d == symbol)
        if symbol in kept:
            share = share.movedim(kept.index(symbol), -1)
            kept = kept.replace(symbol, "")
        else:
            share = share.unsqueeze(-1)  # a support of one value
        found[factor.name] = unpacked(share, kept, names)
    return found

"""The log-probabilities that depend on enumerated values, by connected component: their sums, and what these cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_discrete.errors import EnumerationError, SiteShapeError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.programs.sites import sample_sites, site_log_prob
from pyro_discrete.sums.elimination import Elimination, Reduce, SizesAlone, log_sum_exp
from pyro_discrete.sums.enumerated_sites import Marginalise

__all__ = [
    "Component",
    "Factor",
    "Names",
    "SumCost",
    "component_cost",
    "components",
    "contract",
    "highest",
    "random_value",
    "shares",
    "symbol_of",
    "unpacked",
]


FIRST_SYMBOL = 0x10000
"""Symbols of dims are characters from here on, in the order of their sites."""


@dataclass(eq=False)
class Factor:
    """A log-probability that depends on enumerated values: `value` is packed (no dims of size 1, named by symbols)."""

    name: str
    position: int
    value: Tensor
    symbols: frozenset[str]
    plates: frozenset[str]
    message: Any


@dataclass
class Component:
    """Factors that share enumerated dims, directly or through others: they are summed out together."""

    factors: list[Factor]
    symbols: set[str]
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


def components(model_trace: Trace, marginalise: Marginalise, batch_dims: int) -> tuple[list[Component], Names]:
    """The trace's factors with enumerated dims, by connected component."""
    names, factors = Names(), []
    for position, (name, msg) in enumerate(sample_sites(model_trace).items()):
        if name in marginalise.own or _reaches_left(msg, batch_dims):
            factors.append(_factor(name, position, msg, marginalise, batch_dims, names))
    _check_plates(factors, marginalise, names)
    group: dict[str, Component] = {}
    found: list[Component] = []
    for factor in factors:
        joined = Component([factor], set(factor.symbols), [])
        for other in {id(group[s]): group[s] for s in factor.symbols if s in group}.values():
            small, joined = sorted((joined, other), key=lambda c: len(c.symbols))
            joined.factors += small.factors
            joined.symbols |= small.symbols
            group.update(dict.fromkeys(small.symbols, joined))
        group.update(dict.fromkeys(factor.symbols, joined))
        if not factor.symbols:
            found.append(joined)  # a support of one value
    found += {id(c): c for c in group.values()}.values()
    for component in found:
        component.factors.sort(key=lambda f: f.position)
        component.sites = [f.name for f in component.factors if f.name in marginalise.own]
    return sorted(found, key=lambda c: c.factors[0].position), names


def _reaches_left(msg: Any, batch_dims: int) -> bool:
    """Whether a site's log-probability has a dim left of rows and plates."""
    value = msg["value"].dim() if torch.is_tensor(msg["value"]) else 0
    return max(len(getattr(msg["fn"], "batch_shape", ())), value - msg["fn"].event_dim) > 1 + batch_dims


def _factor(name: str, position: int, msg: Any, marginalise: Marginalise, batch_dims: int, names: Names) -> Factor:
    log_p = site_log_prob(msg)
    if marginalise.masked or name not in marginalise.own:
        log_p = scale_and_mask(log_p, mask=msg["mask"])
    at = {f.dim: names.of_plate(f) for f in msg["cond_indep_stack"] if f.dim is not None}
    known = marginalise.dims.get(name, {})
    symbols = ""
    for dim in range(-log_p.dim(), 0):
        if log_p.shape[dim] > 1:
            if dim < -1 - batch_dims and dim in known:
                symbols += symbol_of(known[dim])
            elif dim in at:
                symbols += at[dim]
            else:
                raise SiteShapeError(
                    f"Site {name!r} has a log-probability of shape {tuple(log_p.shape)}, whose dim {dim} is in no "
                    "plate and belongs to no enumerated site. Index from the right, so that dims on the left broadcast."
                )
    packed = log_p.squeeze() if 1 in log_p.shape else log_p.clone()  # a tensor of its own, to carry the symbols
    packed._pyro_dims = symbols  # type: ignore[attr-defined]
    plates = frozenset(at.values())
    return Factor(name, position, packed, frozenset(symbols) - plates, plates, msg)


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
                    f"over. Draw {inside[symbol].name!r} in the guide too."
                )


def contract(component: Component, ring: Elimination | None = None) -> Tensor:
    """The component's marginal log-likelihood, packed: `[*plates that all of its factors are in]`."""
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in component.factors:
        tree.setdefault(factor.plates, []).append(factor.value)
    try:
        contracted = contract_tensor_tree(tree, set(component.symbols), ring=ring or Elimination())
    except NotImplementedError as error:
        raise EnumerationError(
            f"Sites {', '.join(map(repr, component.sites))} of the model alone depend on each other across plates that "
            f"are not nested, so that their sum grows exponentially with the plates' sizes ({error}). Draw some of "
            "them in the guide too."
        ) from error
    ((term,),) = contracted.values()
    return term


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
    """What an exact sum costs, in elements: its largest table, and all tables together (what has to be computed)."""

    largest: int = 0
    operations: int = 0

    def __str__(self) -> str:
        return f"largest table {self.largest:.3g} elements, {self.operations:.3g} operations"

    def beside(self, other: SumCost) -> SumCost:
        """Both, one after the other."""
        return SumCost(max(self.largest, other.largest), self.operations + other.operations)

    def times(self, rows: int) -> SumCost:
        """As many at once."""
        return SumCost(self.largest * rows, self.operations * rows)

    def fits(self, settings: Enumerate) -> bool:
        """Whether it is within the budget."""
        return self.largest <= settings.max_elements and self.operations <= settings.max_operations


def within_budget(component: Component, settings: Mapping[str, Enumerate]) -> SumCost:
    """A component's cost. Raises `EnumerationError` if it is beyond the budget of its sites' settings."""
    cost = component_cost(component)
    allowed = [settings[name] for name in component.sites if name in settings] or [Enumerate()]
    if not any(cost.fits(each) for each in allowed):
        budget = max(allowed, key=lambda e: e.max_elements)
        sites = ", ".join(map(repr, component.sites[:6])) + (", ..." if len(component.sites) > 6 else "")
        raise EnumerationError(
            f"Summing out {len(component.sites)} site(s) of the model alone together ({sites}) needs a largest table "
            f"of {cost.largest:.3g} elements and {cost.operations:.3g} operations a row; at most "
            f"{budget.max_elements:.3g} and {budget.max_operations:.3g} are allowed (Enumerate(max_elements=..., "
            "max_operations=...)). Put chains in pyro.markov and independent sites in a pyro.plate, or draw some of "
            "these sites in the guide too, by 'rloo' or 'nvil'."
        )
    return cost


def component_cost(component: Component) -> SumCost:
    """The cost of contracting a component, found by going the same way with the sizes alone."""
    ring = SizesAlone()
    contract(component, ring)
    tables = [f.value.numel() for f in component.factors]
    return SumCost(max(ring.largest, *tables), ring.operations + sum(tables))


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

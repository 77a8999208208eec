"""The log-probabilities that depend on enumerated values, by connected component, and their sums."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_discrete.elimination import Elimination
from pyro_discrete.enumerated_sites import Marginalise
from pyro_discrete.errors import EnumerationError, SiteShapeError
from pyro_discrete.programs.sites import sample_sites

__all__ = ["Component", "Factor", "Names", "components", "contract", "symbol_of", "unpacked"]

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
    log_p = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
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

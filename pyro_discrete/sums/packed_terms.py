"""The terms of a pair whose guide is enumerated in parallel: the model's own sites summed out, given its values.

Traces are Pyro's, packed: a term's dims have symbols, one for each plate and one for each enumerated site.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pyro.ops import packed
from pyro.poutine import Trace
from torch import Tensor, is_tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.sites import latent_sites, sample_sites
from pyro_discrete.sums.components import SCALE_OF_VALUES, contract, joined_factors
from pyro_discrete.sums.elimination import dims_of
from pyro_discrete.sums.enumerated_sites import IN_GUIDE
from pyro_discrete.sums.factors import Component, Factor
from pyro_discrete.sums.left_out import note_left_out
from pyro_discrete.sums.marginalisation import common_scale

__all__ = [
    "Costs",
    "CoupledElementsError",
    "add_sums",
    "check_crossing",
    "enumerated_in",
    "model_costs",
    "ordinal_of",
]


Costs = dict[frozenset[str], list[Tensor]]
"""Terms by the symbols of the plates that they are in."""


class CoupledElementsError(EnumerationError):
    """Elements of a plate hang together by what comes after them, so that they cannot be summed over one by one.

    `by`: what joins them, in a few words.
    """

    def __init__(self, message: str, by: str) -> None:
        super().__init__(message)
        self.by = by


def ordinal_of(trace: Trace, site: Any) -> frozenset[str]:
    """The symbols of the plates around a site."""
    return frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)


def enumerated_in(trace: Trace, without: Collection[str] = ()) -> Iterator[tuple[str, str, Any]]:
    """Name, symbol and message of each enumerated site."""
    for name, site in latent_sites(trace).items():
        if name not in without and site["infer"].get("_enumerate_dim") is not None:
            yield name, site["infer"]["_enumerate_symbol"], site


def check_crossing(guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a site outside a plate that depends on a site enumerated inside it: elements would be taken in step.

    Raises `CoupledElementsError`.
    """
    inside: dict[str, tuple[str, set[Any]]] = {}
    for trace, without in ((guide_trace, ()), (model_trace, latent_sites(guide_trace))):
        for name, symbol, site in enumerated_in(trace, without):
            plates = {p for p in plates_of(site) if p.vectorized}
            if plates:
                inside[symbol] = name, plates
    for outer in (m for t in (guide_trace, model_trace) for m in sample_sites(t).values()) if inside else ():
        for symbol in dims_of(outer["packed"]["log_prob"]):
            name, plates = inside.get(symbol, ("", None))
            if plates is not None and not plates <= plates_of(outer):
                missing = sorted(p.name for p in plates - plates_of(outer))
                raise CoupledElementsError(
                    f"Site {outer['name']!r} outside plate {', '.join(missing)} depends on site {name!r} "
                    "enumerated inside it, so all joint values of the plate's elements would have to be enumerated. "
                    "Use 'rloo' or 'nvil'.",
                    "a site outside depends on an enumerated one",
                )


def model_costs(model_trace: Trace, guide_trace: Trace) -> tuple[Costs, list[Component]]:
    """The model's terms that none of its own enumerated sites reaches, and those to sum out, by component."""
    own = {name: symbol for name, symbol, _ in enumerated_in(model_trace, latent_sites(guide_trace))}
    inside = {own[n]: ordinal_of(model_trace, model_trace.nodes[n]) for n in own}
    costs: Costs = {}
    factors = []
    for position, (name, site) in enumerate(sample_sites(model_trace).items()):
        pack, plates = site["packed"], ordinal_of(model_trace, site)
        if inside.keys().isdisjoint(dims_of(pack["log_prob"])):
            costs.setdefault(plates, []).append(pack["log_prob"])
            continue
        value = pack["unscaled_log_prob"]
        if name not in own:
            value = packed.scale_and_mask(value, mask=pack["mask"])
        if is_tensor(site["scale"]) and site["scale"].numel() > 1:
            raise EnumerationError(SCALE_OF_VALUES.format(name=name, shape=tuple(site["scale"].shape)))
        symbols = frozenset(dims_of(value)) & inside.keys()
        places = site["infer"]["_dim_to_symbol"]
        factors.append(Factor(name, position, value, symbols, plates, site, own.get(name, ""), places))
    return costs, joined_factors(factors, inside, own)


def add_sums(costs: Costs, found: Collection[Component], guide_trace: Trace) -> None:
    """Add to the costs the sums over the model's own sites.

    Raises `CoupledElementsError` where one of them joins elements of a plate in which the guide's sites are enumerated.
    """
    guided = {symbol: (name, ordinal_of(guide_trace, site)) for name, symbol, site in enumerated_in(guide_trace)}
    for component in found:
        shared = frozenset.intersection(*(f.plates for f in component.factors))
        for factor in component.factors:
            for symbol in dims_of(factor.value):
                name, plates = guided.get(symbol, ("", shared))
                if not plates <= shared:
                    raise CoupledElementsError(
                        f"Site {component.sites[0]!r} of the model alone is summed out outside of a plate in which "
                        f"site {name!r} is enumerated, and couples the plate's elements, so all their joint values "
                        f"would have to be enumerated. Use 'rloo' or 'nvil', or draw it {IN_GUIDE}.",
                        "a site of the model alone couples them",
                    )
        note_left_out(component)
        term = packed.scale_and_mask(contract(component), scale=common_scale(component))
        costs.setdefault(shared, []).append(term)

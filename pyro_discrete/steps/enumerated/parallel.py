"""Exact sums over all discrete sites by Pyro's enumeration: in parallel, or the guide's values one after another."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.trial import check_matched
from pyro_discrete.planning.plan import Exact, OneByOne, Parallel, Plan, StructureChangedError
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import (
    family_of,
    guide_terms,
    is_deterministic,
    is_latent,
    latent_sites,
    sample_sites,
)
from pyro_discrete.sums.components import SumCost
from pyro_discrete.sums.elimination import Elimination, SizesAlone
from pyro_discrete.sums.enumerated_sites import mark_for_enumeration
from pyro_discrete.sums.marginalisation import SCALES_DIFFER

__all__ = [
    "CoupledPlatesError",
    "enumerated_loss",
]


class CoupledPlatesError(StructureChangedError):
    """Elements of a plate are coupled by a site of the model alone: no sum goes plate by plate."""


def enumerated_loss(plan: Plan, pair: Pair, known: Dependencies = UNKNOWN) -> Tensor:
    """The loss with every discrete site summed over its support, differentiable; `[]`.

    `known`: what depends on what in this call, where terms are closed. Raises `CoupledPlatesError`.
    """
    assert isinstance(plan.way, Exact)
    settings, parallel = plan.way.settings, not isinstance(plan.way, OneByOne)
    beside = isinstance(plan.way, Parallel) and plan.way.at_once
    particles = plan.particles if plan.samples else 1  # else all are the same
    elbo = _ExactELBO(num_particles=particles, max_plate_nesting=plan.batch_dims, vectorize_particles=beside)
    elbo.settings, elbo.plan, elbo.known = settings, plan, known
    seen: set[str] = set()
    guide = _Configure(settings, parallel, seen=seen)(pair.guide)
    model = _Configure(settings, parallel, drawn=seen)(pair.model)
    try:
        with warnings.catch_warnings():  # sites that need not be in the model may be there
            warnings.filterwarnings("ignore", message="Found auxiliary vars in the model")
            loss = elbo.exact_loss(model, guide, *pair.args, **pair.kwargs)
    except ValueError as error:
        if "common poutine.scale" in str(error):
            alone = ", ".join(repr(site.name) for site in plan.sites if site.name not in seen)
            raise EnumerationError(
                f"Sites {alone} of the model alone are summed out together with the sites that depend on them, but "
                f"{SCALES_DIFFER}"
            ) from error
        if "no more global" not in str(error):
            raise
        raise CoupledPlatesError("a site of the model alone couples the elements of a plate") from error
    plan.met.cost = elbo.cost
    return loss


class _Configure(Messenger):
    """Marks discrete sites for enumeration, after a look at the size of their tables: in parallel, or the guide's not.

    For the guide, `seen` collects the names of its latent sites; for the model, sites in `drawn` are the guide's.
    """

    def __init__(
        self, settings: Enumerate, parallel: bool, seen: set[str] | None = None, drawn: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.settings, self.parallel, self.seen, self.drawn = settings, parallel, seen, drawn

    def _pyro_sample(self, msg: Any) -> None:
        if is_deterministic(msg):
            msg["stop"] = True  # Pyro would judge its dims
        if not is_latent(msg) or msg["name"] in self.drawn:
            return
        if self.seen is not None:
            self.seen.add(msg["name"])
        fn = msg["fn"]
        if family_of(fn) in (None, Family.CONTINUOUS) or msg["done"]:
            return
        marginal = self.seen is None
        mark_for_enumeration(msg, self.settings, marginal, self.parallel or marginal)


class _ExactELBO(TraceEnum_ELBO):
    """Pyro's enumeration, with a check for what it would get silently wrong and for what it would cost.

    The sites of the model alone are summed out by `Elimination`.
    """

    settings: Enumerate
    plan: Plan
    known: Dependencies
    cost: SumCost | None = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        check_matched(guide_trace, model_trace)
        for name in sample_sites(guide_trace).keys() - guide_terms(guide_trace).keys():
            guide_trace.remove_node(name)
        _check_crossing(guide_trace, model_trace)
        self._close(guide_trace, model_trace)
        _in_one_dtype(guide_trace, model_trace)
        return model_trace, guide_trace

    def _close(self, guide_trace: Trace, model_trace: Trace) -> None:
        """Put closed terms in the place of sampled ones, but for those under a sum over a site of the model alone."""
        drawn, found = latent_sites(guide_trace), self.plan.closed_terms(guide_trace, model_trace, self.known)
        alone = {m["infer"].get("_enumerate_symbol") for n, m in latent_sites(model_trace).items() if n not in drawn}
        for name, term in found.items():
            node: Any = model_trace.nodes.get(name, drawn[name])
            if alone & set(node["packed"]["log_prob"]._pyro_dims):
                continue
            value: Any = packed.pack(term, node["infer"]["_dim_to_symbol"])
            if node is not drawn[name]:
                value, sampled = packed.neg(value), drawn[name]["packed"]["log_prob"]
                nothing: Any = torch.zeros_like(sampled)
                nothing._pyro_dims = sampled._pyro_dims
                drawn[name]["packed"]["log_prob"] = nothing
            node["packed"]["log_prob"] = value
            self.plan.met.closed.add(name)

    def exact_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Like `differentiable_loss`, but also where nothing requires a gradient."""
        elbo = sum(self._expected(*traces) for traces in self._get_traces(model, guide, args, kwargs))
        return -torch.as_tensor(elbo) / self.num_particles

    def _expected(self, model_trace: Trace, guide_trace: Trace) -> Any:
        """As in Pyro's `_compute_dice_elbo`: marginal model costs and guide costs, their expectation by Dice."""
        costs, log_factors, ordering, sum_dims, scale = _compute_model_factors(model_trace, guide_trace)
        self.cost = _cost(costs, log_factors, sum_dims, guide_trace)
        if not self.cost.fits(self.settings):
            latent = [n for t in (guide_trace, model_trace) for n in latent_sites(t)]
            raise EnumerationError(
                f"Enumerating {', '.join(map(repr, dict.fromkeys(latent[:6])))}{', ...' if len(latent) > 6 else ''} "
                f"together needs: {self.cost}; at most {self.settings.max_elements:.3g} and "
                f"{self.settings.max_operations:.3g} are allowed (Enumerate(max_elements=..., max_operations=...)). "
                "Use 'rloo' or 'nvil' for some of them, or put chains in pyro.markov."
            )
        if log_factors:
            for ordinal, terms in contract_tensor_tree(log_factors, sum_dims, ring=Elimination()).items():
                costs.setdefault(ordinal, []).extend(packed.scale_and_mask(t, scale=scale) for t in terms)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                costs.setdefault(ordering[name], []).append(packed.neg(site["packed"]["log_prob"]))
        return Dice(guide_trace, ordering).compute_expectation(costs)


def _cost(costs: Any, log_factors: Any, sum_dims: set[str], guide_trace: Trace) -> SumCost:
    """What an expectation costs: the sums over the model's own sites, and those over the guide's with its costs."""
    ring = SizesAlone()
    every = [term for terms in [*costs.values(), *log_factors.values()] for term in terms]
    if log_factors:
        for ordinal, terms in contract_tensor_tree(log_factors, sum_dims, ring=ring).items():
            costs = {**costs, ordinal: [*costs.get(ordinal, []), *terms]}
    drawn = [m["packed"]["log_prob"] for m in latent_sites(guide_trace).values()]
    every += drawn
    enumerated = {
        m["infer"]["_enumerate_symbol"]
        for m in latent_sites(guide_trace).values()
        if m["infer"].get("_enumerate_symbol") is not None
    }
    terms = [t for t in [*drawn, *(t for terms in costs.values() for t in terms)] if enumerated & set(t._pyro_dims)]
    if terms:
        ring.sumproduct(terms, enumerated & {d for t in terms for d in t._pyro_dims})
    return SumCost(max([ring.largest, *(t.numel() for t in every)]), ring.operations + sum(t.numel() for t in every))


def _in_one_dtype(guide_trace: Trace, model_trace: Trace) -> None:
    """Bring the terms to one dtype: sites may be of several, and masked ones are of the default one."""
    packs = [m["packed"] for t in (guide_trace, model_trace) for m in sample_sites(t).values()]
    dtypes = {pack["log_prob"].dtype for pack in packs if "log_prob" in pack}
    if len(dtypes) < 2:
        return
    widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).bits)

    def wide(term: Any) -> Any:
        if not torch.is_tensor(term):
            return term
        made = term.to(widest)
        made._pyro_dims = term._pyro_dims  # type: ignore[attr-defined]
        return made

    for pack in packs:
        pack |= {key: wide(pack[key]) for key in ("log_prob", "unscaled_log_prob") if key in pack}
        if "score_parts" in pack:
            pack["score_parts"] = ScoreParts(*map(wide, pack["score_parts"]))


def _check_crossing(guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a site outside a plate that depends on a site enumerated inside it: elements would be taken in step."""
    over: dict[tuple[int, Any], list[Any]] = {}  # what varies along a dim, by its id too: chains use dims again
    for site in (m for t in (guide_trace, model_trace) for m in sample_sites(t).values()):
        shape, ids = tuple(site["fn"].batch_shape), site["infer"].get("_dim_to_id", {})
        for dim, size in enumerate(shape, start=-len(shape)):
            if size > 1 and dim in ids:
                over.setdefault((dim, ids[dim]), []).append(site)
    for inner in sample_sites(guide_trace).values():
        dim = inner["infer"].get("_enumerate_dim")
        if dim is None:
            continue
        plates = {p for p in plates_of(inner) if p.vectorized}
        for outer in over.get((dim, inner["infer"]["_dim_to_id"].get(dim)), ()):
            if not plates <= plates_of(outer):
                missing = sorted(p.name for p in plates - plates_of(outer))
                raise EnumerationError(
                    f"Site {outer['name']!r} outside plate {', '.join(missing)} depends on site {inner['name']!r} "
                    "enumerated inside it, so all joint values of the plate's elements would have to be enumerated. "
                    "Use 'rloo' or 'nvil'."
                )

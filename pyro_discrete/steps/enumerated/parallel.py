"""Exact sums over all discrete sites: Pyro's parallel enumeration, or joint values as rows where plates are crossed."""

from __future__ import annotations

import math
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

from pyro_discrete.errors import DiscreteInferenceError, EnumerationError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.trial import Trial, check_rows
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import Site, family_of, is_deterministic, is_latent, latent_sites, sample_sites
from pyro_discrete.steps.enumerated.elementwise import separated_loss
from pyro_discrete.steps.enumerated.jointly import joint_loss
from pyro_discrete.sums.components import SumCost
from pyro_discrete.sums.elimination import Elimination, SizesAlone
from pyro_discrete.sums.enumerated_sites import mark_for_enumeration
from pyro_discrete.sums.marginalisation import SCALES_DIFFER

__all__ = [
    "enumerated_loss",
    "settle_enumeration",
]


ONE_BY_ONE = 4096
"""So many joint values at most are gone through one by one."""


def enumerated_loss(plan: Plan, pair: Pair, known: Dependencies = UNKNOWN) -> Tensor:
    """The loss with every discrete site summed over its support, differentiable; `[]`.

    `known`: what depends on what in this call, where elements are summed over one by one or terms are closed.
    """
    settings = plan.enumeration or Enumerate()
    if plan.separated:
        return separated_loss(plan, pair, known)
    if plan.joint:
        return joint_loss(plan, pair, settings, known)
    parallel = not plan.one_by_one
    particles = plan.particles if any(site.rows for site in plan.sites) else 1  # nothing is sampled: all are the same
    elbo = _ExactELBO(num_particles=particles, max_plate_nesting=plan.batch_dims, vectorize_particles=parallel)
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
        if "no more global" not in str(error) or not plan.explicit:
            raise
        plan.joint, plan.reason = True, "joint values of all plate elements, as a site of the model alone couples them"
        return joint_loss(plan, pair, settings, known)
    plan.cost = elbo.cost
    return loss


def settle_enumeration(plan: Plan, pair: Pair, trial: Trial, known: Dependencies = UNKNOWN) -> bool:
    """Whether the plan's enumeration can be had. Where it was asked for but not in parallel, values go one by one.

    In parallel, enumerated values fill new dims on the left, as rows do: a program that does not keep rows apart would
    be silently wrong. Raises `EnumerationError` if it was asked for and cannot be had at all; one that "auto" chose is
    given up instead.
    """
    reason = _why_not_parallel(plan, pair, trial, known)
    if not reason:
        if not plan.explicit:
            plan.enumeration = Enumerate()  # it is small here: larger batches may come
        return True
    if not plan.explicit:
        return False
    joint = math.prod(
        s.cardinality for s in map(Site, latent_sites(trial.guide_trace).values()) if s.family is not None
    )
    if plan.joint:
        raise EnumerationError(
            "The elements of a plate have to be enumerated jointly, over a leading dim that the program cannot take "
            f"({reason}). Use 'rloo' or 'nvil', or index from the right."
        )
    if joint > ONE_BY_ONE:
        raise EnumerationError(
            f"The discrete sites cannot be enumerated in parallel ({reason}), and their {joint:.3g} joint values are "
            f"too many to go through one by one ({ONE_BY_ONE} at most). Use 'rloo' or 'nvil', or index from the right "
            "so that dims on the left broadcast."
        )
    plan.one_by_one, plan.reason = True, f"one joint value after another, as in parallel: {reason}"
    try:
        with torch.no_grad():
            enumerated_loss(plan, pair)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        other = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise EnumerationError(
            f"The program cannot be enumerated, neither in parallel ({reason}) nor one joint value after another "
            f"({other}). Use 'rloo' or 'nvil'. Sites of the model alone are summed out over leading dims under "
            "every estimator: index from the right behind them, or draw them in the guide too."
        ) from error
    return True


def _why_not_parallel(plan: Plan, pair: Pair, trial: Trial, known: Dependencies) -> str:
    """Why values cannot be enumerated in parallel; empty if they can."""
    try:
        verdict = check_rows(pair, trial, 1)
        if not verdict:
            return verdict.reason
        with torch.no_grad():
            enumerated_loss(plan, pair, known)
    except EnumerationError:
        if plan.explicit:
            raise
        return "too large"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


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
            self.plan.note_closed([name])

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

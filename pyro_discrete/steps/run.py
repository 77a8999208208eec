"""One run of a pair: the guide with its draws placed, the model against it, and what the objective makes of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.trial import check_matched
from pyro_discrete.objectives.base import E, Objective
from pyro_discrete.planning.kl_treatment import settled_points
from pyro_discrete.planning.plan import Plan, StructureChangedError
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.pair import KeepSubsamples, Pair, RowsPlate, trace_sites
from pyro_discrete.programs.sites import latent_sites, sample_sites
from pyro_discrete.relaxations.handler import ExtendMessenger
from pyro_discrete.relaxations.jumps import Report, WatchJumps, refuse_jump, warn_of_jump
from pyro_discrete.steps.placing import PlaceColumn, PlaceRows
from pyro_discrete.sums.components import SumCost, within_budget
from pyro_discrete.sums.enumerated_sites import Marginalise, in_pairs_where_needed
from pyro_discrete.sums.factors import Component
from pyro_discrete.sums.marginalisation import collapsed, summed_one_by_one, why_not_at_once_here

__all__ = [
    "DEEPER",
    "Traces",
    "evaluated",
    "is_too_deep",
    "run_pair",
]


DEEPER = "the program has deeper plates than before"


@dataclass(frozen=True)
class Traces:
    """One run of guide and model.

    - `scored`: the model's trace as it is to be scored: discrete sites of its own are summed out there, by a term
      for each group of them; `members` names the sites behind each term.
    - `watch`: what saw no jump of a relaxed value so far, if this run is watched for any.
    """

    guide: Trace
    model: Trace
    scored: Trace
    members: Mapping[str, list[str]]
    watch: WatchJumps | None = None

    @cached_property
    def guide_sites(self) -> Mapping[str, Any]:
        """The guide's sample sites."""
        return sample_sites(self.guide)

    @cached_property
    def drawn(self) -> Mapping[str, Any]:
        """Those of them that are latent."""
        return {name: msg for name, msg in self.guide_sites.items() if not msg["is_observed"]}

    @cached_property
    def model_sites(self) -> Mapping[str, Any]:
        """The model's."""
        return sample_sites(self.model)


def run_pair(
    plan: Plan,
    pair: Pair,
    placing: PlaceRows | PlaceColumn,
    known: Dependencies = UNKNOWN,
    subsamples: KeepSubsamples | None = None,
    analytic: bool = True,
) -> Traces:
    """The guide once and the model once, under a plate of all rows, or without one for a single column.

    `known` says where the divergence of a relaxed site may be analytic, if any may. Raises `StructureChangedError` for
    more plate dims, or other sites, than the plan knows of.
    """
    watch = _watch_jumps(plan, placing, known if known.known else None)
    guide, model = (pair.guide, pair.model) if watch is None else (watch(pair.guide), watch(pair.model))
    if isinstance(placing, PlaceRows):
        plate = RowsPlate(placing.layout.size, -1 - plan.batch_dims)
        guide, model = plate(guide), plate(model)
    if subsamples is not None:
        guide, model = subsamples(guide), subsamples(model)
    try:
        traces = _traces(guide, model, placing, pair, plan, known if analytic else UNKNOWN)
    except ValueError as error:
        if is_too_deep(error):
            raise StructureChangedError(DEEPER, plan.batch_dims + 1) from error
        raise
    _check_sites(traces, plan)
    return traces if watch is None else replace(traces, watch=watch)


def is_too_deep(error: Exception) -> bool:
    """Whether a plate of the program wants the dim of the rows."""
    return "collide at dim" in str(error) and f'"{ROWS_PLATE}"' in str(error)


def _check_sites(traces: Traces, plan: Plan) -> None:
    """Raise `SiteMatchError` for a site of the guide that is not in the model, `StructureChangedError` for deeper
    plates."""
    sites = *traces.guide_sites.values(), *traces.model_sites.values()
    deepest = 0
    for msg in sites:
        for name, dim, *_ in msg["cond_indep_stack"]:
            if dim is not None and -dim > deepest and name != ROWS_PLATE:
                deepest = -dim
    model = traces.model_sites
    if not all(name in model and not model[name]["is_observed"] for name in traces.drawn):
        check_matched(traces.guide, traces.model)
    if deepest > plan.batch_dims:
        raise StructureChangedError(DEEPER, deepest)


def evaluated(
    plan: Plan, objective: Objective[E], traces: Traces, placing: PlaceRows | PlaceColumn, known: Dependencies
) -> E:
    """What the objective makes of a run: its loss, and the terms behind each site's cost."""
    if known.known and not known.fit(traces.guide_sites, traces.model_sites):
        raise StructureChangedError("its sites are others than in the trial run")
    keep_graph = any(e.slope_rows for e in placing.taken.values())
    state, watch = known if known.known else None, traces.watch
    known = known.joined(traces.members)
    scoring = nullcontext() if watch is None else watch.scoring(traces.guide, traces.model)
    with scoring:
        evaluation = objective.evaluate(
            traces.guide, traces.scored, placing.taken, placing.layout, plan.batch_dims, keep_graph, known
        )
    if watch is not None and watch.followed:
        plan.met.jumps.saw(state, placing.own)
    return evaluation if traces.scored is traces.model else replace(evaluation, model_trace=traces.model)


def _traces(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    placing: PlaceRows | PlaceColumn,
    pair: Pair,
    plan: Plan,
    known: Dependencies,
) -> Traces:
    if pair.guide_runs_model:
        with placing:
            guide(*pair.args, **pair.kwargs)
        model_trace, guide_trace = poutine.unwrap(guide).get_traces()
        settled_points(placing.relaxed, plan, guide_trace, known)
        return Traces(guide_trace, model_trace, model_trace, {})
    with placing:
        guide_trace = trace_sites(guide, pair.args, pair.kwargs)
    if placing.relaxed:
        model = ExtendMessenger(settled_points(placing.relaxed, plan, guide_trace, known))(model)
    if plan.marginals.one_by_one:
        return Traces(guide_trace, *summed_one_by_one(model, guide_trace, pair.args, pair.kwargs))
    if plan.marginals.settings:
        drawn = latent_sites(guide_trace)
        if plan.marginals.in_branches and isinstance(placing, PlaceColumn) and not placing.relaxed:
            draws = {n: m["value"].detach() for n, m in drawn.items()}
            reason = why_not_at_once_here(pair, draws, KeepSubsamples(), plan.batch_dims)
            if reason:
                raise StructureChangedError("its branches take sums in other ways", singly=reason)
        rows = isinstance(placing, PlaceRows)

        def summed(by_parts: Mapping[str, int]) -> Traces:
            marginalise = Marginalise(drawn, plan.marginals.settings, plan.batch_dims, rows=rows, by_parts=by_parts)
            model_trace = trace_sites(marginalise(model), pair.args, pair.kwargs, guide_trace)
            if not plan.marginals.untried or plan.met.cost is not None:
                return Traces(guide_trace, model_trace, *collapsed(model_trace, marginalise, plan.batch_dims))
            costs = list[SumCost]()

            def judge(component: Component) -> None:
                costs.append(within_budget(component, plan.marginals.settings))

            scored = collapsed(model_trace, marginalise, plan.batch_dims, judge)
            plan.met.cost = reduce(SumCost.beside, costs, SumCost())
            return Traces(guide_trace, model_trace, *scored)

        return in_pairs_where_needed(summed, plan.marginals.by_parts)
    model_trace = trace_sites(model, pair.args, pair.kwargs, guide_trace)
    traces = Traces(guide_trace, model_trace, model_trace, {})
    for name, msg in traces.model_sites.items():
        if not msg["is_observed"] and name not in traces.drawn:
            raise StructureChangedError(
                f"site {name!r} is new in the model", own=f"site {name!r} is in some branches alone"
            )
    return traces


def _watch_jumps(plan: Plan, placing: PlaceRows | PlaceColumn, state: Dependencies | None) -> WatchJumps | None:
    """What sees that the program jumps as a relaxed value moves; None where none is relaxed, or nothing is learned."""
    if not torch.is_grad_enabled():
        return None
    met = plan.met.estimators
    estimators = [e for e in (*plan.given.values(), *met.values()) if e is not None and e.relaxed]
    if not estimators or not plan.met.jumps.due(state, placing.own):
        return None

    def watched(name: str) -> Report | None:
        estimator = placing.taken.get(name)
        if estimator is None or name not in placing.relaxed:
            return None
        if estimator.rests_on_slopes:
            return refuse_jump(estimator.name) if placing.has_soft_columns else None
        return warn_of_jump(estimator.name, plan.met.jumps.told) if 0 in estimator.relaxed else None

    return WatchJumps(watched, slopes=any(e.rests_on_slopes for e in estimators))

"""One run of a pair: the guide with its draws placed, the model against it, and what the objective makes of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger

from pyro_discrete.estimators.base import Estimator
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.kl_treatment import settled_points
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import ROWS_PLATE, Layout
from pyro_discrete.programs.pair import KeepSubsamples, Pair, trace_sites
from pyro_discrete.programs.sites import Site, is_latent, latent_sites, sample_sites
from pyro_discrete.relaxations.handler import ExtendMessenger
from pyro_discrete.relaxations.relaxed_distribution import state_trials
from pyro_discrete.steps.placing import PlaceColumn, PlaceRows
from pyro_discrete.sums.enumerated_sites import Marginalise
from pyro_discrete.sums.marginalisation import collapsed, summed_one_by_one

__all__ = [
    "StructureChangedError",
    "evaluated",
]


class StructureChangedError(Exception):
    """The program has a site, or more plate dims, than the plan knows of."""

    def __init__(self, message: str, batch_dims: int | None = None) -> None:
        super().__init__(message)
        self.batch_dims = batch_dims


def evaluated(
    pair: Pair,
    plan: Plan,
    objective: Objective,
    placing: PlaceRows | PlaceColumn,
    layout: Layout,
    subsamples: KeepSubsamples | None = None,
    dependencies: Dependencies = UNKNOWN,
) -> Evaluation:
    """The guide once and the model once, under a plate of `layout.size` rows, or without one for a single column."""
    guide, model = pair.guide, pair.model
    if isinstance(placing, PlaceRows):
        plate = pyro.plate(ROWS_PLATE, layout.size, dim=-1 - plan.batch_dims)
        guide, model = plate(guide), plate(model)
    if subsamples is not None:
        guide, model = subsamples(guide), subsamples(model)
    try:
        sound = dependencies if objective.additive else UNKNOWN
        guide_trace, model_trace, scored, members = _traces(guide, model, placing, pair, plan, sound)
    except ValueError as error:
        if "collide at dim" in str(error) and f'"{ROWS_PLATE}"' in str(error):
            raise StructureChangedError("the program has deeper plates than before", plan.batch_dims + 1) from error
        raise
    sites = sample_sites(guide_trace), sample_sites(model_trace)
    frames = [f for each in sites for m in each.values() for f in m["cond_indep_stack"]]
    deepest = max((-f.dim for f in frames if f.dim is not None and f.name != ROWS_PLATE), default=0)
    if deepest > plan.batch_dims:
        raise StructureChangedError("the program has deeper plates than before", deepest)
    keep_graph = any(e.slope_rows for e in placing.chosen.values())
    if dependencies.known and not dependencies.fit(*sites):
        raise StructureChangedError("its sites are others than in the trial run")
    dependencies = dependencies.joined(members)
    evaluation = objective.evaluate(
        guide_trace, scored, placing.chosen, layout, plan.batch_dims, keep_graph, dependencies
    )
    return evaluation if scored is model_trace else replace(evaluation, model_trace=model_trace)


def _traces(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    placing: PlaceRows | PlaceColumn,
    pair: Pair,
    plan: Plan,
    sound: Dependencies,
) -> tuple[Trace, Trace, Trace, Mapping[str, list[str]]]:
    """The guide's trace, the model's, and that as it is to be scored: its own discrete sites summed out, by term.

    `sound` says where a divergence may be analytic.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, Messenger):  # a guide that runs the model itself
        with placing:
            guide(*pair.args, **pair.kwargs)
        model_trace, guide_trace = unwrapped.get_traces()  # type: ignore[attr-defined]
        settled_points(placing.relaxed, plan, guide_trace, sound)
        return guide_trace, model_trace, model_trace, {}
    with placing:
        guide_trace = trace_sites(guide, pair.args, pair.kwargs)
    if placing.relaxed:
        model = ExtendMessenger(settled_points(placing.relaxed, plan, guide_trace, sound))(model)
    drawn = latent_sites(guide_trace)
    if plan.sums_one_by_one:
        return guide_trace, *summed_one_by_one(model, guide_trace, pair.args, pair.kwargs)
    if plan.marginal:
        marginalise = Marginalise(drawn, plan.marginal, plan.batch_dims)
        model_trace = trace_sites(marginalise(model), pair.args, pair.kwargs, guide_trace)
        return guide_trace, model_trace, *collapsed(model_trace, marginalise, plan.batch_dims)
    model_trace = trace_sites(model, pair.args, pair.kwargs, guide_trace)
    for name, msg in model_trace.nodes.items():
        if name not in drawn and is_latent(msg):
            raise StructureChangedError(f"site {name!r} is new in the model")
    return guide_trace, model_trace, model_trace, {}


Adopt = Callable[[Site], Estimator]


def _chooser(plan: Plan, adopt: Adopt, read: bool = True) -> Callable[[Site], Estimator | None]:
    def choose(site: Site) -> Estimator | None:
        dims = len(site.distribution.batch_shape) - (
            1 if any(f.name == ROWS_PLATE for f in site["cond_indep_stack"]) else 0
        )
        if dims > plan.batch_dims:
            raise StructureChangedError(f"site {site.name!r} is in more plates than before", dims)
        if site.family is None:
            return None
        estimator = adopt(site)
        if estimator.relaxed or estimator.sloped:
            state_trials(site, plan.largest, read)
        return estimator

    return choose

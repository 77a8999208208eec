"""What each estimator is handed: its draw, the costs of its rows, and their slopes where it wants them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.baseline_inputs import Contexts
from pyro_discrete.planning.plan import Plan, StructureChangedError
from pyro_discrete.planning.products import in_product
from pyro_discrete.programs.dims import Columns, Frames, Layout
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.plate_elements import PlateElements
from pyro_discrete.programs.sites import Site
from pyro_discrete.steps.outcome import Pending
from pyro_discrete.steps.placing import PlaceRows

__all__ = [
    "check_apart",
    "contexts_of",
    "cost_of_rows",
    "filled_draw",
    "hand_over",
    "joined_rows",
    "site_cost",
    "slopes_by_column",
    "slopes_by_row",
    "untended_part",
    "used_columns",
]


def hand_over(
    plan: Plan, pair: Pair, objective: Objective, placing: PlaceRows, evaluation: Evaluation
) -> list[Pending]:
    """Each site's draw, with what `surrogate` wants to know beside it, and the costs of its rows."""
    columns, layout = plan.columns, placing.layout
    check_apart(evaluation, placing.taken, columns.apart)
    contexts = contexts_of(evaluation, plan, pair)
    slopes = slopes_by_row(evaluation, placing.resampled, placing.draws, placing.taken, columns, layout)
    pending = []
    for name, draw in placing.draws.items():
        estimator, site = placing.taken[name], placing.sites[name]
        cost = cost_of_rows(evaluation, name, estimator, site.plates, columns, layout)
        filled = filled_draw(draw, site, estimator, evaluation, objective, layout, contexts, slopes.get(name, {}))
        if members := columns.products.get(name):
            elements = PlateElements(site.plates, columns.apart.get(name, ()))
            own, scores = used_columns(columns, name, elements), evaluation.scores
            log_q = {m: elements.own(layout.split(placing.sites[m].plates, scores[m])[own]) for m in members}
            filled = in_product(filled, name, log_q)
        pending.append(Pending(estimator, filled, cost, name=name, plates=site.plates))
    return pending


def cost_of_rows(
    evaluation: Evaluation, name: str, estimator: Estimator, plates: Frames, columns: Columns, layout: Layout
) -> Tensor:
    """The costs `[rows, K, *batch]` of the named site's rows, from a run that holds all of them."""
    cost = layout.split(plates, site_cost(evaluation, name, estimator))
    if columns.count == 1:
        return cost
    elements = PlateElements(plates, columns.apart.get(name, ()))
    if elements:
        return joined_rows(cost[:1], elements.own(cost[used_columns(columns, name, elements)]))
    rows = columns.rows_of(name)
    return cost[rows] if len(rows) < columns.count else cost


def contexts_of(evaluation: Evaluation, plan: Plan, pair: Pair) -> Contexts:
    """What the baselines of a run may read."""
    return Contexts(evaluation.model_trace or Trace(), plan.observed, plan.batch_dims, pair.args, pair.kwargs)


def check_apart(evaluation: Evaluation, taken: Mapping[str, Estimator], apart: Mapping[str, Collection[str]]) -> None:
    """Raise `StructureChangedError` where plate elements share later terms and are to be moved one at a time, but are
    not `apart`."""
    found: dict[str, dict[str, int]] = {}
    for name, estimator in taken.items():
        if estimator.separable:
            crossed = evaluation.costs.crossed_plates(name)
            new = {p.name: p.size for p in crossed if p.name not in apart.get(name, ())}
            if new:
                found[name] = new
    if found:
        raise StructureChangedError("elements of a plate share later terms", apart=found)


def used_columns(columns: Columns, name: str, elements: PlateElements) -> list[int]:
    """The site's columns, as far as it has elements for them."""
    own = columns.owned[name]
    return own[: len(own) // columns.room(name) * elements.number]


def joined_rows(first: Tensor, further: Tensor) -> Tensor:
    """Costs of row 0 and of further rows, which may be of more elements, as those of all rows."""
    return torch.cat([first.expand(1, *further.shape[1:]), further])


def site_cost(evaluation: Evaluation, name: str, estimator: Estimator) -> Tensor:
    """The named site's cost `[n, *batch]`."""
    cost = evaluation.costs.of(name, estimator.local_signals)
    if cost is None:  # its own term is in closed form, and no other depends on it: nothing is left to be sampled
        score = evaluation.scores.get(name)  # none where it is relaxed, and its gradient pathwise
        return torch.zeros_like(evaluation.costs.totals() if score is None else score).detach()
    return cost


def filled_draw(
    draw: Draw,
    site: Site,
    estimator: Estimator,
    evaluation: Evaluation,
    objective: Objective,
    layout: Layout,
    contexts: Contexts,
    slopes: Mapping[int, Tensor],
) -> ScoredDraw:
    """The draw with what `surrogate` wants to know beside it."""
    log_q, context = evaluation.scores.get(site.name), contexts.of(site.name, estimator, site.plates)
    if context is not None and len(site.leading) > 2:
        context = context.unsqueeze(1)
    return ScoredDraw(
        draw.value,
        draw.point,
        draw.logits,
        draw.extra,
        log_q=None if log_q is None else layout.first_column(site.plates, log_q),
        event_dim=site.event_dim,
        scale=evaluation.costs.order.scale(site.name),  # as handlers around the step have them
        context=context,
        weights=objective.weights(evaluation, site.name),
        slopes=slopes,
        by_rows=draw.by_rows,
    )


def untended_part(evaluation: Evaluation, joined: Evaluation, layout: Layout, shared: bool = True) -> Tensor | float:
    """The score function for what no estimator serves: guide factors, partly reparameterised distributions.

    Summed over particles. `evaluation` costs what a particle has for itself, `joined` what the particles share, if that
    is wanted.
    """
    total: Tensor | float = 0.0
    for name, score in evaluation.untended.items():
        plates = evaluation.costs.order.plates[name]
        shares = layout.shares(plates)
        if shares and not shared:
            continue
        cost = (joined if shares else evaluation).costs.of(name, local=name not in evaluation.factors)
        if cost is not None:
            part = layout.first_column(plates, score) * layout.first_column(plates, cost.detach())
            total = total + part.sum()
    return total


def slopes_by_row(
    evaluation: Evaluation,
    resampled: Iterable[tuple[int, str]],
    draws: Mapping[str, Draw],
    chosen: Mapping[str, Estimator],
    columns: Columns,
    layout: Layout,
) -> dict[str, dict[int, Tensor]]:
    """Site to row to slope `[K, *batch, *event]`, for the rows of a run that holds all of them.

    Row 0 is copied into other sites' columns, so its slopes are those of column 0 alone; the further columns' slopes
    come from one more backward pass through all of them.
    """
    wanting = {name: e for name, e in chosen.items() if e.slope_rows and name in draws}
    if not wanting:
        return {}
    totals = _scored(evaluation, resampled, layout)
    own = [columns.rows_of(n)[r] for n, e in wanting.items() for r in e.slope_rows if r > 0]
    found: dict[str, dict[int, Tensor]] = {name: {} for name in wanting}
    for cost, first in ((totals[0].sum(), True), (totals[own].sum(), False)):
        names = [n for n, e in wanting.items() if any((r == 0) is first for r in e.slope_rows)]
        if not names:
            continue
        graph = any(chosen[n].differentiates_costs for n in names)
        for name, slope in zip(names, _gradients(cost, [draws[n].value for n in names], graph), strict=True):
            found[name].update({r: slope[r] for r in wanting[name].slope_rows if (r == 0) is first})
    return found


def slopes_by_column(
    evaluation: Evaluation,
    resampled: Iterable[tuple[int, str]],
    layout: Layout,
    draw: Draw,
    estimator: Estimator,
    row: int,
) -> Tensor:
    """The slope `[1, *batch, *event]` of one row, from the run of its column alone."""
    total = _scored(evaluation, resampled, layout).sum()
    return _gradients(total, [draw.value], estimator.differentiates_costs)[0][row]


def _scored(evaluation: Evaluation, resampled: Iterable[tuple[int, str]], layout: Layout) -> Tensor:
    """Total costs `[columns, K]`, with the scores of sites drawn hard downstream of a relaxed value.

    Without its score such a site's influence would be missing from the slope.
    """
    leading = (layout.columns, layout.particles)
    totals = evaluation.costs.totals().reshape(leading)
    for column, name in resampled:
        cost = evaluation.costs.of(name)
        if cost is not None:
            weighted = (evaluation.scores[name] * cost.detach()).reshape(*leading, -1).sum(-1)
            here = torch.arange(leading[0], device=weighted.device) == column
            totals = totals + weighted * here.to(weighted).unsqueeze(-1)
    return totals


def _gradients(total: Tensor, values: list[Tensor], graph: bool) -> list[Tensor]:
    found = torch.autograd.grad(total, values, retain_graph=True, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, values, strict=True)]

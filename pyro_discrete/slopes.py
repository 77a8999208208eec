"""Slopes: how a row's total cost changes with the value that an estimator drew there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pyro_discrete.estimators.base import Draw, Estimator
from pyro_discrete.objectives.base import Evaluation
from pyro_discrete.programs.dims import Columns, Layout

__all__ = ["slopes_by_column", "slopes_by_row"]


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

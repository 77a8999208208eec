"""One step: run the program over its rows, cost each site, and combine what the estimators make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.context import Contexts
from pyro_discrete.dependencies import UNKNOWN, Dependencies
from pyro_discrete.errors import SharedTermsError
from pyro_discrete.estimators.base import Draw, Estimator, Family, SiteView
from pyro_discrete.estimators.reinforce import Reinforce
from pyro_discrete.finite import leaf_parameters
from pyro_discrete.objectives import Evaluation, Objective, first
from pyro_discrete.one_run import StructureChangedError, evaluated
from pyro_discrete.planning import Plan
from pyro_discrete.probe import Pair
from pyro_discrete.relaxations.concrete import corner
from pyro_discrete.relaxations.forms import hard_value, one_hot_site
from pyro_discrete.rows import Columns, KeepSubsamples, PlaceColumn, PlaceRows, Primary
from pyro_discrete.sites import ROWS_PLATE, Site, base_distribution, subsampling_scale
from pyro_discrete.slopes import slopes_by_column, slopes_by_row

__all__ = ["Outcome", "StructureChangedError", "run_hard", "run_step"]

Adopt = Callable[[Site], Estimator]
_PLAIN = Reinforce()


@dataclass
class Outcome:
    """A step's loss (mean over particles, detached), and its surrogate, whose gradient is the estimate."""

    loss: Tensor | float
    surrogate: Tensor | float
    evaluations: list[Evaluation]
    pending: list[tuple[Estimator, Draw, Tensor]] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)

    def leaves(self) -> list[Tensor]:
        """The parameters that the surrogate depends on, wherever they live; draws that slopes are taken at are none."""
        drawn = {id(value) for value in self.draws}
        return [leaf for leaf in leaf_parameters(torch.as_tensor(self.surrogate)) if id(leaf) not in drawn]

    def traces(self) -> list[tuple[str, Trace]]:
        """The guide's and the model's traces of every run."""
        return [p for e in self.evaluations for p in (("guide", e.guide_trace), ("model", e.model_trace))]

    def combine(self, particles: int) -> None:
        """Let the estimators combine their costs. They learn from them on the way: the loss is to be checked before."""
        for estimator, draw, cost in self.pending:
            surrogate = estimator.surrogate(draw, cost if estimator.differentiates_costs else cost.detach())
            part = _over(torch.as_tensor(surrogate.loss).sum(), particles)
            if surrogate.auxiliary is not None:
                part = part + surrogate.auxiliary * (draw.value.shape[1] / particles)  # a mean over its own particles
            self.surrogate = self.surrogate + part
        self.pending = []


def _over(total: Any, particles: int) -> Any:
    """The mean over particles of a sum, without an operation where there is one particle."""
    return total if particles == 1 else total / particles


class _Hardened(Reinforce):
    """Draws as a relaxed estimator does, and rounds to the corner behind the draw."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    @staticmethod
    def instead_of(estimator: Estimator | None) -> Reinforce:
        """What draws hard values in an estimator's place."""
        if estimator is None or 0 not in estimator.relaxed or not estimator.draws_from_guide:
            return _PLAIN
        return _Hardened(estimator)

    def draw(self, site: SiteView) -> Draw:
        if not isinstance(site, Site) or site.family is Family.COUNT:  # a relaxed count's support is truncated
            return super().draw(site)
        soft = self.estimator.draw(one_hot_site(site)).value[:1].detach()
        return Draw(hard_value(site.distribution, corner(soft, one_hot=site.family is not Family.BERNOULLI)))


def run_hard(plan: Plan, pair: Pair, objective: Objective) -> Outcome:
    """The discrete objective with hard draws, one row; a relaxed draw is hardened, so that its noise is the same."""
    dependencies = plan.dependencies(pair) if objective.reads_dependencies else UNKNOWN
    pair = objective.around(pair, training=False)
    choose = _chooser(plan, lambda site: _Hardened.instead_of(plan.estimators.get(site.name)))
    if plan.path == "vectorised" and plan.particles > 1:
        placing = PlaceRows(choose, Columns(), plan.particles, plan.batch_dims)
        evaluations = [evaluated(pair, plan, objective, placing, plan.particles, dependencies=dependencies)]
    else:
        subsamples, evaluations = None, []
        for _ in range(plan.particles):
            placing = PlaceColumn(choose, Primary(), plan.batch_dims)
            evaluations.append(evaluated(pair, plan, objective, placing, None, subsamples, dependencies))
            subsamples = subsamples or KeepSubsamples.of(evaluations[0].guide_trace, evaluations[0].model_trace)
    loss = sum((e.loss for e in evaluations), start=0.0)
    return Outcome(loss / plan.particles, 0.0, evaluations)


def run_step(
    plan: Plan, pair: Pair, objective: Objective, adopt: Adopt, dependencies: Dependencies | None = None
) -> Outcome:
    """A training step's loss and surrogate. `adopt(site)` gives a site's estimator."""
    dependencies = plan.dependencies(pair) if dependencies is None else dependencies
    pair = objective.around(pair, training=True)
    choose = _chooser(plan, adopt)
    run = _run_rows if plan.path == "vectorised" else _run_columns
    return run(plan, pair, objective, choose, dependencies)


def _chooser(plan: Plan, adopt: Adopt) -> Callable[[Site], Estimator | None]:
    def choose(site: Site) -> Estimator | None:
        dims = len(site.distribution.batch_shape) - (
            1 if any(f.name == ROWS_PLATE for f in site["cond_indep_stack"]) else 0
        )
        if dims > plan.batch_dims:
            raise StructureChangedError(f"site {site.name!r} is in more plates than before", dims)
        return None if site.family is None else adopt(site)

    return choose


def _run_rows(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    choose: Callable[[Site], Estimator | None],
    dependencies: Dependencies,
) -> Outcome:
    """Every row and particle at once."""
    columns, particles = plan.columns, plan.particles
    estimators = {name: e for name, e in plan.estimators.items() if e is not None}
    soft = {columns.rows_of(n)[r] for n, e in estimators.items() for r in e.relaxed if r > 0}
    placing = PlaceRows(choose, columns, particles, plan.batch_dims, soft, dependencies.downstream)
    evaluation = evaluated(pair, plan, objective, placing, columns.count * particles, dependencies=dependencies)
    outcome = Outcome(_over(evaluation.loss, particles), _over(evaluation.path, particles), [evaluation])
    contexts = Contexts(evaluation.model_trace, plan.observed, plan.batch_dims, pair.args, pair.kwargs)
    outcome.draws = [draw.value for draw in placing.draws.values()]
    slopes = slopes_by_row(evaluation, placing.resampled, placing.draws, placing.chosen, columns, particles)
    for name, draw in placing.draws.items():
        estimator, site = placing.chosen[name], placing.sites[name]
        cost = _cost(evaluation, name, estimator)
        if len(cost) < columns.count * particles:
            cost = cost.expand(columns.count * particles, *cost.shape[1:])
        cost = cost.reshape((columns.count, particles) + tuple(cost.shape[1:]))
        if len(rows := columns.rows_of(name)) < columns.count:
            cost = cost[rows]
        score, slope = evaluation.scores.get(name), slopes.get(name, {})
        outcome.pending.append((estimator, _filled(draw, site, estimator, score, particles, contexts, slope), cost))
    _add_untended(outcome, evaluation, particles)
    return outcome


def _run_columns(
    plan: Plan,
    pair: Pair,
    objective: Objective,
    choose: Callable[[Site], Estimator | None],
    dependencies: Dependencies,
) -> Outcome:
    """Row by row, particle by particle; sites of the same shape are combined over particles."""
    particles, subsamples = plan.particles, None
    outcome = Outcome(0.0, 0.0, [])
    gathered: dict[Any, list[tuple[Estimator, Draw, Tensor]]] = {}
    for _ in range(particles):
        primary = Primary()
        placing = PlaceColumn(choose, primary, plan.batch_dims)
        evaluation = evaluated(pair, plan, objective, placing, None, subsamples, dependencies)
        if subsamples is None and (particles > 1 or any(placing.extra.values())):
            subsamples = KeepSubsamples.of(evaluation.guide_trace, evaluation.model_trace)
        outcome.evaluations.append(evaluation)
        outcome.draws += [draw.value for draw in primary.draws.values()]
        outcome.loss = outcome.loss + _over(evaluation.loss, particles)
        outcome.surrogate = outcome.surrogate + _over(evaluation.path, particles)
        contexts = Contexts(evaluation.model_trace, plan.observed, plan.batch_dims, pair.args, pair.kwargs)
        for name, draw in primary.draws.items():
            estimator, site = placing.chosen[name], placing.sites[name]
            costs, slopes = [_cost(evaluation, name, estimator)], {}
            if 0 in estimator.slope_rows:
                slopes[0] = slopes_by_column(evaluation, (), draw, estimator, 0)
            for row in range(1, placing.extra[name] + 1):
                wanted = row in estimator.slope_rows
                with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                    column = PlaceColumn(choose, primary, plan.batch_dims, name, row, dependencies.downstream)
                    other = evaluated(pair, plan, objective, column, None, subsamples, dependencies)
                    costs.append(_cost(other, name, estimator))
                if wanted:
                    slopes[row] = slopes_by_column(other, column.resampled, draw, estimator, row)
            cost = costs[0].unsqueeze(0) if len(costs) == 1 else torch.stack(costs)
            filled = _filled(draw, site, estimator, evaluation.scores.get(name), 1, contexts, slopes)
            gathered.setdefault((name, cost.shape, draw.value.shape), []).append((estimator, filled, cost))
        _add_untended(outcome, evaluation, particles)
    for group in gathered.values():
        estimator = group[0][0]
        if estimator.differentiates_costs:  # it needs each draw's own graph
            outcome.pending.extend(group)
            continue
        costs = [c for _, _, c in group]
        cost = costs[0] if len(costs) == 1 else torch.cat(costs, 1)
        outcome.pending.append((estimator, Draw.join([d for _, d, _ in group]), cost))
    return outcome


def _cost(evaluation: Evaluation, name: str, estimator: Estimator) -> Tensor:
    if estimator.separable and evaluation.costs.crosses_plates(name):
        raise SharedTermsError(
            f"Estimator {estimator.name!r} changes all elements of site {name!r}'s plates at once, but these elements "
            "share later terms: they cannot be judged one by one. Use 'rloo' or 'nvil' for the site, or enumerate "
            "every discrete site."
        )
    cost = evaluation.costs.of(name, estimator.local_signals)
    if cost is None:
        raise RuntimeError(f"site {name!r} has no cost term, not even its own")
    return cost


def _filled(
    draw: Draw,
    site: Site,
    estimator: Estimator,
    log_q: Tensor | None,
    particles: int,
    contexts: Contexts,
    slopes: Mapping[int, Tensor],
) -> Draw:
    """The draw with what `surrogate` wants to know beside it."""
    return draw.replace(
        log_q=None if log_q is None else first(log_q, particles),
        event_dim=site.event_dim,
        scale=subsampling_scale(site.plates),
        context=contexts.of(site.name, estimator, site.plates),
        slopes=slopes,
    )


def _add_untended(outcome: Outcome, evaluation: Evaluation, particles: int) -> None:
    """The score function for what no estimator serves: guide factors, partly reparameterised distributions."""
    for name, score in evaluation.untended.items():
        factor = isinstance(base_distribution(evaluation.guide_trace.nodes[name]["fn"]), Unit)
        cost = evaluation.costs.of(name, local=not factor)
        if cost is not None:
            rows = particles if score.shape[0] > 1 else 1
            outcome.surrogate = outcome.surrogate + (score[:rows] * cost.detach()[:rows]).sum() / particles

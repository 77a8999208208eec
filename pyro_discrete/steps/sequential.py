"""One step of a program that cannot take a leading dim: row by row, particle by particle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.estimators.base import ScoredDraw
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.plan import Plan
from pyro_discrete.planning.products import check_members, in_product
from pyro_discrete.planning.shared_terms import check_rows_apart
from pyro_discrete.programs.dims import Layout
from pyro_discrete.programs.pair import KeepSubsamples, Pair
from pyro_discrete.steps.choice import Choice
from pyro_discrete.steps.costing import (
    check_apart,
    contexts_of,
    filled_draw,
    joined_rows,
    site_cost,
    slopes_by_column,
    untended_part,
    used_columns,
)
from pyro_discrete.steps.hard_loss import hard_loss_of_columns
from pyro_discrete.steps.outcome import Outcome, Pending, over, plus
from pyro_discrete.steps.placing import PlaceColumn, Primary
from pyro_discrete.steps.run import evaluated, run_pair

__all__ = [
    "evaluate",
    "train",
]


@dataclass
class _Particle:
    """The primary run of one particle: beside the others of its bound, if it has one."""

    primary: Primary
    placing: PlaceColumn
    evaluation: Evaluation


@dataclass
class _Sequence:
    """What the runs of one step have in common."""

    plan: Plan
    pair: Pair
    objective: Objective
    choice: Choice
    layout: Layout
    dependencies: Dependencies
    subsamples: KeepSubsamples | None = None

    def run(
        self, primary: Primary, given: Mapping[str, Tensor], owners: Mapping[str, int] | None = None
    ) -> tuple[PlaceColumn, Evaluation]:
        known, plan = self.dependencies, self.plan
        apart = plan.columns.apart
        placing = PlaceColumn(
            self.choice, primary, self.layout, plan.batch_dims, owners, known.downstream, given, apart
        )
        traces = run_pair(plan, self.pair, placing, known, self.subsamples, self.objective.additive)
        evaluation = evaluated(plan, self.objective, traces, placing, known)
        if self.subsamples is None and (self.plan.layout.size > 1 or any(placing.extra.values())):
            self.subsamples = KeepSubsamples.of(evaluation.guide_trace, evaluation.model_trace)
        return placing, evaluation

    def row_of(
        self, particles: list[_Particle], number: int, joined: Evaluation, owners: Mapping[str, int]
    ) -> tuple[PlaceColumn, Evaluation]:
        """A further row of a site: of one particle beside the others, or of all that share the site."""
        own, name = particles[number], next(iter(owners))
        if not self.layout.shares(own.placing.sites[name].plates):
            placing, evaluation = self.run(own.primary, particles[0].placing.shared, owners)
            return placing, self.objective.beside(evaluation, joined, number)
        placing, evaluation = self.run(own.primary, {}, owners)
        runs = [evaluation] + [self.run(p.primary, placing.shared, owners)[1] for p in particles[1:]]
        return placing, self.objective.join(runs)


def train(plan: Plan, pair: Pair, objective: Objective, choice: Choice, known: Dependencies) -> Outcome:
    """A training step's loss, and what its estimators are to combine: sites of the same shape over samples."""
    outcome = Outcome()
    sequence = _Sequence(plan, pair, objective, choice, plan.layout.block(), known)
    gathered: dict[Any, list[Pending]] = {}
    for _ in range(plan.particles):
        particles: list[_Particle] = []
        for _ in range(plan.layout.inner or 1):
            primary = Primary()
            placing, evaluation = sequence.run(primary, particles[0].placing.shared if particles else {})
            particles.append(_Particle(primary, placing, evaluation))
        outcome.evaluations.extend(p.evaluation for p in particles)
        outcome.draws += [draw.value for p in particles for draw in p.primary.draws.values()]
        joined = objective.join([p.evaluation for p in particles])
        outcome.loss = plus(outcome.loss, over(joined.loss, plan.particles))
        outcome.surrogate = plus(outcome.surrogate, over(joined.pathwise, plan.particles))
        for number, particle in enumerate(particles):
            particle.evaluation = objective.beside(particle.evaluation, joined, number)
            for name, each in _draws(sequence, particles, number, joined):
                gathered.setdefault((name, number, each.cost.shape, each.draw.value.shape), []).append(each)
            if particle.evaluation.untended:
                part = untended_part(particle.evaluation, joined, sequence.layout, shared=number == 0)
                outcome.surrogate = outcome.surrogate + over(part, plan.particles)
    for group in gathered.values():
        outcome.pending.extend(_together(group))
    return outcome


def evaluate(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Outcome:
    """The objective with hard draws."""
    return hard_loss_of_columns(plan, pair, objective, known)


def _draws(
    sequence: _Sequence, particles: list[_Particle], number: int, joined: Evaluation
) -> Iterator[tuple[str, Pending]]:
    """What the estimators drew for one particle, by site, with the costs of all rows."""
    particle, layout, plan = particles[number], sequence.layout, sequence.plan
    contexts = contexts_of(particle.evaluation, plan, sequence.pair)
    columns, products = plan.columns, {}
    check_apart(joined, particle.placing.taken, columns.apart)
    for name, draw in particle.primary.draws.items():
        estimator, site = particle.placing.taken[name], particle.placing.sites[name]
        elements = particle.placing.elements(site)
        check_rows_apart(name, estimator, elements.number, len(draw.value), sequence.objective)
        shares = layout.shares(site.plates)
        evaluation = joined if shares else particle.evaluation
        costs, slopes = [site_cost(evaluation, name, estimator)], {}
        if 0 in estimator.slope_rows:
            slopes[0] = slopes_by_column(evaluation, (), layout, draw, estimator, 0)
        members = columns.products.get(name)
        if members is not None and members not in products:
            values = len(used_columns(columns, name, elements))
            products[members] = _joint_values(sequence, particles, number, joined, members, values)
        for row in range(1, particle.placing.extra[name] + 1 if members is None else 1):
            wanted = row in estimator.slope_rows
            with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                column, other = sequence.row_of(particles, number, joined, {name: row})
                check_apart(other, {name: estimator}, columns.apart)
                costs.append(site_cost(other, name, estimator))
            if wanted:
                slopes[row] = slopes_by_column(other, column.resampled, layout, draw, estimator, row)
        if members is not None:
            costs += [site_cost(other, name, estimator) for other in products[members]]
        rows = [layout.split(site.plates, c) for c in costs]
        cost = rows[0] if len(rows) == 1 else joined_rows(rows[0], elements.own(torch.cat(rows[1:])))
        filled = filled_draw(draw, site, estimator, evaluation, sequence.objective, layout, contexts, slopes)
        if members is not None:
            scores = {m: [layout.split(site.plates, other.scores[m]) for other in products[members]] for m in members}
            filled = in_product(filled, name, {m: elements.own(torch.cat(log_q)) for m, log_q in scores.items()})
        runs = plan.particles * (1 if shares else len(particles))
        yield name, Pending(estimator, filled, cost, 1 / runs)


def _joint_values(
    sequence: _Sequence,
    particles: list[_Particle],
    number: int,
    joined: Evaluation,
    members: Sequence[str],
    values: int,
) -> list[Evaluation]:
    """A run for each of the joint values of a product's sites."""
    columns = sequence.plan.columns
    check_members(members, particles[number].primary.draws)
    found = []
    for value in range(values):
        found.append(sequence.row_of(particles, number, joined, columns.together(members, value))[1])
        check_members(members, found[-1].scores)
        taken = particles[number].placing.taken
        check_apart(found[-1], {name: taken[name] for name in members}, columns.apart)
    return found


def _together(group: list[Pending]) -> list[Pending]:
    """One site's draws of independent samples as one draw, unless each needs its own graph."""
    first = group[0]
    if first.estimator.differentiates_costs:
        return group
    if len(group) == 1:
        return group
    draw, cost = ScoredDraw.join([p.draw for p in group]), torch.cat([p.cost for p in group], 1)
    return [replace(first, draw=draw, cost=cost, share=sum(p.share for p in group))]

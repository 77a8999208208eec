"""One run of guide and model, what an estimator is given of it, and the outcome of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import SharedTermsError
from pyro_discrete.estimators.base import Draw, Estimator
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.planning.baseline_inputs import Contexts
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.dims import Layout, subsampling_scale
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.programs.sites import Site

__all__ = [
    "Outcome",
    "Pending",
    "contexts_of",
    "filled_draw",
    "over",
    "plus",
    "site_cost",
    "untended_part",
]


@dataclass(frozen=True)
class Pending:
    """A site's draw and its costs, to be combined; `share` is the part of the site's particles that are in it."""

    estimator: Estimator
    draw: Draw
    cost: Tensor
    share: float = 1.0


_NOTHING = 0.0


@dataclass
class Outcome:
    """A step's loss (mean over particles, detached), and its surrogate, whose gradient is the estimate."""

    loss: Tensor | float = _NOTHING
    surrogate: Tensor | float = _NOTHING
    evaluations: list[Evaluation] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    draws: list[Tensor] = field(default_factory=list)

    def leaves(self) -> list[Tensor]:
        """The parameters that the surrogate depends on, wherever they live; draws that slopes are taken at are none."""
        drawn = {id(value) for value in self.draws}
        return [leaf for leaf in leaf_parameters(torch.as_tensor(self.surrogate)) if id(leaf) not in drawn]

    def traces(self) -> list[tuple[str, Trace]]:
        """The guide's and the model's traces of every run."""
        pairs = [p for e in self.evaluations for p in (("guide", e.guide_trace), ("model", e.model_trace))]
        return [(where, trace) for where, trace in pairs if trace is not None]

    def combine(self, particles: int) -> None:
        """Let the estimators combine their costs. They learn from them on the way: the loss is to be checked before."""
        for each in self.pending:
            cost = each.cost if each.estimator.differentiates_costs else each.cost.detach()
            surrogate = each.estimator.surrogate(each.draw, cost)
            part = over(torch.as_tensor(surrogate.loss).sum(), particles)
            if surrogate.auxiliary is not None:
                part = part + surrogate.auxiliary * each.share  # a mean over its own particles
            self.surrogate = plus(self.surrogate, part)
        self.pending = []


def plus(total: Any, part: Any) -> Any:
    """The sum of both, without an operation where there is no total yet."""
    return part if total is _NOTHING else total + part


def over(total: Any, particles: int) -> Any:
    """The mean over particles of a sum, without an operation where there is one particle."""
    return total if particles == 1 else total / particles


def contexts_of(evaluation: Evaluation, plan: Plan, pair: Pair) -> Contexts:
    """What the baselines of a run may read."""
    return Contexts(evaluation.model_trace or Trace(), plan.observed, plan.batch_dims, pair.args, pair.kwargs)


def site_cost(evaluation: Evaluation, name: str, estimator: Estimator, objective: Objective) -> Tensor:
    """The named site's cost `[n, *batch]`."""
    if estimator.separable and evaluation.costs.crosses_plates(name):
        raise SharedTermsError(
            f"Estimator {estimator.name!r} changes all elements of site {name!r}'s plates at once, but these elements "
            f"share later terms: they cannot be judged one by one. {objective.instead_of_separable}"
        )
    cost = evaluation.costs.of(name, estimator.local_signals)
    if cost is None:
        raise RuntimeError(f"site {name!r} has no cost term, not even its own")
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
) -> Draw:
    """The draw with what `surrogate` wants to know beside it."""
    log_q, context = evaluation.scores.get(site.name), contexts.of(site.name, estimator, site.plates)
    if context is not None and len(site.leading) > 2:
        context = context.unsqueeze(1)
    return draw.replace(
        log_q=None if log_q is None else layout.first_column(site.plates, log_q),
        event_dim=site.event_dim,
        scale=subsampling_scale(site.plates),
        context=context,
        weights=objective.weights(evaluation, site.name),
        slopes=slopes,
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

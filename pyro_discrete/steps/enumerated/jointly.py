"""Joint values of all plate elements as rows of one run, where elements cannot be summed over one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import check_matched, plain_trial
from pyro_discrete.planning.plan import Jointly, Plan
from pyro_discrete.programs.pair import KeepSubsamples, Pair, hidden_from_traces, trace_pair
from pyro_discrete.programs.sites import (
    cardinality,
    family_of,
    guide_terms,
    joint_support,
    latent_sites,
    sample_sites,
    without_mask,
)
from pyro_discrete.sums.components import SumCost, magnitude
from pyro_discrete.sums.enumerated_sites import BudgetError, Marginalise, in_pairs_where_needed
from pyro_discrete.sums.joint_values import GiveValues, JointValues
from pyro_discrete.sums.marginalisation import (
    collapsed,
    sites_by_parts,
    summed_one_by_one,
    why_not_at_once_here,
)

__all__ = [
    "ONE_BY_ONE",
    "joint_loss",
    "joint_values",
]


ONE_BY_ONE = 4096
"""So many joint values at most are gone through one by one."""


def joint_values(sites: Iterable[Any]) -> int:
    """How many joint values all elements of these sites' messages have."""
    return math.prod(int(cardinality(m["fn"])) ** math.prod(m["fn"].batch_shape) for m in sites)


def joint_loss(plan: Plan, pair: Pair, known: Dependencies) -> Tensor:
    """Every joint value of all elements of all guide sites as rows of one run, weighted by their probability."""
    assert isinstance(plan.way, Jointly)
    if plan.way.one_by_one:
        return _one_by_one(plan, pair, known)
    settings = plan.way.settings
    with hidden_from_traces():
        trial = plain_trial(pair)
    sites = {n: m for n, m in latent_sites(trial.guide_trace).items() if _is_discrete(m)}
    extra = latent_sites(trial.model_trace).keys() - latent_sites(trial.guide_trace).keys()
    total = joint_values(sites.values())
    largest = max(m["value"].numel() for t in (trial.guide_trace, trial.model_trace) for m in sample_sites(t).values())
    if total * largest * plan.particles > settings.max_elements:
        names = ", ".join(repr(n) for n in sites)
        raise BudgetError(
            f"Sites {names} {plan.way.why}, so their plate elements have to be enumerated jointly: {magnitude(total)} "
            "joint values. Use 'rloo' or 'nvil', or draw sites outside the plate first."
        )
    rows = total
    values, stride = {}, 1
    index = torch.arange(rows)
    for name, msg in sites.items():
        fn = msg["fn"]
        support = joint_support(fn).reshape((-1, *fn.event_shape))
        elements = math.prod(fn.batch_shape)
        digits = torch.stack([(index // (stride * len(support) ** e)) % len(support) for e in range(elements)], -1)
        stride *= len(support) ** elements
        batch = (1,) * (plan.batch_dims - len(fn.batch_shape)) + tuple(fn.batch_shape)
        table = support[digits.to(support.device)].reshape((rows, 1, *batch, *fn.event_shape))
        values[name] = table.expand((rows, plan.particles, *batch, *fn.event_shape)).flatten(0, 1)
    plan.met.cost = SumCost(total * largest * plan.particles, total * largest * plan.particles)
    drawn, given = latent_sites(trial.guide_trace), dict.fromkeys(extra, settings)
    leading = rows * plan.particles, -1 - plan.batch_dims

    def summed(by_parts: Mapping[str, int]) -> tuple[Trace, Trace]:
        marginalise = Marginalise(drawn, given, plan.batch_dims, by_parts=by_parts)
        guide_trace, model_trace = trace_pair(pair, trial.subsamples, values, leading, marginalise)
        return guide_trace, collapsed(model_trace, marginalise, plan.batch_dims)[0] if extra else model_trace

    guide_trace, model_trace = in_pairs_where_needed(summed, sites_by_parts(trial))
    closed = plan.closed_terms(guide_trace, model_trace, known)
    plan.met.closed.update(closed)
    return _weighted((guide_trace, model_trace), sites, plan.particles, closed)


def _one_by_one(plan: Plan, pair: Pair, known: Dependencies) -> Tensor:
    """The same by a run for each joint value (and particle): later sites may depend on earlier values."""
    assert isinstance(plan.way, Jointly)
    particles = plan.particles if plan.samples else 1
    subsamples, losses = KeepSubsamples(), []
    cost = SumCost()
    for _ in range(particles):
        walk = JointValues(ONE_BY_ONE)
        for _ in walk:
            guide_trace, model_trace, given = _run(plan, pair, subsamples, walk)
            closed = plan.closed_terms(guide_trace, model_trace, known)
            losses.append(_weighted((guide_trace, model_trace), given, particles, closed, rows=False))
            sizes = [m["value"].numel() for m in sample_sites(model_trace).values()]
            cost = cost.beside(SumCost(max(sizes, default=0), sum(sizes)))
    plan.met.cost = cost
    return torch.stack(losses).sum()


def _run(
    plan: Plan, pair: Pair, subsamples: KeepSubsamples, walk: JointValues
) -> tuple[Trace, Trace, Mapping[str, Tensor]]:
    """The traces at one joint value of the guide's sites, the model's own summed out; and the sites that were given."""
    assert isinstance(plan.way, Jointly)
    give = GiveValues(_is_discrete, walk.choose)
    pair = replace(pair, guide=give(pair.guide))
    if pair.guide_runs_model:
        return *trace_pair(pair, subsamples), give.given
    with subsamples:
        guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
        own_too = plan.way.own_too
        if not own_too:
            marginalise = Marginalise(latent_sites(guide_trace), {}, plan.batch_dims, rows=False)
            replayed = pair.replayed(guide_trace, marginalise)
            try:
                model_trace = poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)
                if marginalise.own and plan.way.in_branches:
                    draws = {n: m["value"].detach() for n, m in latent_sites(guide_trace).items()}
                    own_too = bool(why_not_at_once_here(pair, draws, subsamples, plan.batch_dims))
            except DiscreteInferenceError:
                raise
            except Exception:  # what it is at single values, it raises again
                own_too = True
            if marginalise.own and not own_too:
                model_trace = collapsed(model_trace, marginalise, plan.batch_dims)[0]
        if own_too:
            model_trace = summed_one_by_one(pair.model, guide_trace, pair.args, pair.kwargs, ONE_BY_ONE // walk.size)[1]
    check_matched(guide_trace, model_trace)
    return guide_trace, model_trace, give.given


def _is_discrete(msg: Any) -> bool:
    return family_of(msg["fn"]) not in (None, Family.CONTINUOUS)


def _weighted(
    rowed: tuple[Trace, Trace],
    sites: Mapping[str, Any],
    particles: int,
    closed: Mapping[str, Tensor],
    rows: bool = True,
) -> Tensor:
    def total(term: Tensor) -> Tensor:
        return term.flatten(1).sum(1) if rows else term.sum()

    guide_trace, model_trace = rowed
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    weight: Tensor | float = 0.0
    f = -sum(total(term) for term in closed.values())
    for terms, sign in ((sample_sites(model_trace), 1.0), (guide_terms(guide_trace), -1.0)):
        for name, msg in terms.items():
            if name not in closed:
                f = f + sign * total(msg["log_prob"])
    for name, msg in latent_sites(guide_trace).items():
        log_q = total(without_mask(msg["fn"]).log_prob(msg["value"])) if family_of(msg["fn"]) is not None else 0.0
        if name in sites:
            weight = weight + log_q
        elif torch.is_tensor(log_q):  # drawn, without a derivative of its own: the score function's
            weight = weight + log_q - log_q.detach()
    weight = torch.as_tensor(weight)
    impossible = weight.isneginf()  # such as more successes than an element's own trials: no number times zero
    return -(weight.exp() * torch.where(impossible, 0.0, f)).sum() / particles

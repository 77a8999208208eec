"""Joint values of all plate elements as rows of one run, where elements cannot be summed over one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import plain_trial
from pyro_discrete.planning.plan import Jointly, Plan
from pyro_discrete.programs.pair import Pair, hidden_from_traces, trace_pair
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
from pyro_discrete.sums.enumerated_sites import Marginalise
from pyro_discrete.sums.marginalisation import collapsed

__all__ = [
    "joint_loss",
]


def joint_values(sites: Iterable[Any]) -> int:
    """How many joint values all elements of these sites' messages have."""
    return math.prod(int(cardinality(m["fn"])) ** math.prod(m["fn"].batch_shape) for m in sites)


def joint_loss(plan: Plan, pair: Pair, known: Dependencies) -> Tensor:
    """Every joint value of all elements of all guide sites as rows of one run, weighted by their probability."""
    assert isinstance(plan.way, Jointly)
    settings = plan.way.settings
    with hidden_from_traces():
        trial = plain_trial(pair)
    sites = {
        n: m for n, m in latent_sites(trial.guide_trace).items() if family_of(m["fn"]) not in (None, Family.CONTINUOUS)
    }
    extra = latent_sites(trial.model_trace).keys() - latent_sites(trial.guide_trace).keys()
    total = joint_values(sites.values())
    largest = max(m["value"].numel() for t in (trial.guide_trace, trial.model_trace) for m in sample_sites(t).values())
    if total * largest * plan.particles > settings.max_elements:
        names = ", ".join(repr(n) for n in sites)
        raise EnumerationError(
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
    marginalise = Marginalise(latent_sites(trial.guide_trace), dict.fromkeys(extra, settings), plan.batch_dims)
    leading = rows * plan.particles, -1 - plan.batch_dims
    guide_trace, model_trace = trace_pair(pair, trial.subsamples, values, leading, marginalise)
    if extra:
        model_trace = collapsed(model_trace, marginalise, plan.batch_dims)[0]
    closed = plan.closed_terms(guide_trace, model_trace, known)
    plan.met.closed.update(closed)
    return _weighted((guide_trace, model_trace), sites, plan.particles, closed)


def _weighted(
    rowed: tuple[Trace, Trace], sites: Mapping[str, Any], particles: int, closed: Mapping[str, Tensor]
) -> Tensor:
    guide_trace, model_trace = rowed
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    weight: Tensor | float = 0.0
    f = -sum(term.flatten(1).sum(1) for term in closed.values())
    for terms, sign in ((sample_sites(model_trace), 1.0), (guide_terms(guide_trace), -1.0)):
        for name, msg in terms.items():
            if name not in closed:
                f = f + sign * msg["log_prob"].flatten(1).sum(1)
            if sign < 0 and name in sites:
                weight = weight + without_mask(msg["fn"]).log_prob(msg["value"]).flatten(1).sum(1)
    return -(torch.as_tensor(weight).exp() * f).sum() / particles

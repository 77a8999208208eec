"""Elements of `.to_event` sites summed over one by one, where no term of the program joins them: d k values, not k^d.

A row for each value has all elements at that value; a term's part that belongs to an element is weighed by the
probability of the value at this element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.planning.plan import Elementwise, Plan, StructureChangedError
from pyro_discrete.programs.pair import KeepSubsamples, Pair, SiteMessenger, trace_pair
from pyro_discrete.programs.sites import (
    element_support,
    guide_terms,
    is_latent,
    is_observed_delta,
    padded,
    sample_sites,
    site_log_prob,
)
from pyro_discrete.sums.components import SumCost

__all__ = [
    "elementwise_loss",
]


class _EachValue(SiteMessenger):
    """Row v x particle: every element of the discrete sites at value v, other sites as in row 0 of their particle."""

    def __init__(self, particles: int, discrete: Iterable[str]) -> None:
        super().__init__()
        self.particles, self.discrete = particles, frozenset(discrete)

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["value"] is not None:
            return
        fn = msg["fn"]
        if msg["name"] in self.discrete:
            support, rows = element_support(fn), fn.batch_shape[0]
            index = (torch.arange(rows, device=support.device) // self.particles).clamp(max=len(support) - 1)
            inner = support.shape[1:]
            value = support[index].reshape(rows, *[1] * (len(fn.shape()) - 1 - len(inner)), *inner).expand(fn.shape())
        else:
            value = fn()
            value = torch.cat([value[: self.particles]] * (len(value) // self.particles))
        msg["value"], msg["done"] = value, True


def elementwise_loss(plan: Plan, pair: Pair, known: Dependencies) -> Tensor:
    """The loss, exact in the discrete sites and differentiable, `[]`.

    Raises `StructureChangedError` if terms may join elements in this call, though they did not when the plan was made.
    """
    assert isinstance(plan.way, Elementwise)
    discrete, particles = plan.way.values, plan.particles if plan.samples else 1
    rows = max(discrete.values()) * particles
    with _EachValue(particles, discrete):
        guide_trace, model_trace = trace_pair(pair, KeepSubsamples(), rows=(rows, -1 - plan.batch_dims))
    terms = _Terms(discrete, plan.batch_dims, guide_trace, known, particles)
    closed = {
        name: term
        for name, term in plan.closed_terms(guide_trace, model_trace, known).items()
        if not any(known.influences(site, ("model", name)) for site in discrete)
    }
    plan.met.closed.update(closed)
    total = -sum(padded(term, plan.batch_dims)[:particles].sum() for term in closed.values())
    for where, sign, sites in (("model", 1.0, sample_sites(model_trace)), ("guide", -1.0, guide_terms(guide_trace))):
        for name, msg in sites.items():
            if name not in closed:
                total = total + sign * terms.of((where, name), msg)
    largest = max(m["value"].numel() for t in (guide_trace, model_trace) for m in sample_sites(t).values())
    plan.met.cost = SumCost(largest, sum(m["value"].numel() for m in sample_sites(model_trace).values()))
    return -torch.as_tensor(total) / particles


class _Terms:
    """The expectation of each site's term, summed over particles."""

    def __init__(
        self, values: Mapping[str, int], batch_dims: int, guide_trace: Any, known: Dependencies, particles: int
    ) -> None:
        self.values, self.batch_dims, self.known, self.particles = values, batch_dims, known, particles
        self.log_q: Mapping[str, Tensor] = {
            name: guide_trace.nodes[name]["fn"].base_dist.log_prob(guide_trace.nodes[name]["value"]) for name in values
        }

    def of(self, key: tuple[str, str], msg: Any) -> Tensor:
        """`[]`, scaled and masked."""
        moving = [s for s in self.values if self.known.influences(s, key)]
        if not moving or is_observed_delta(msg):
            log_prob = padded(scale_and_mask(site_log_prob(msg), msg["scale"], msg["mask"]), self.batch_dims)
            return log_prob.expand(max(self.particles, len(log_prob)), *log_prob.shape[1:])[: self.particles].sum()
        axis = self.known.elements.get(key)
        if len(moving) > 1 or axis is None or not self.known.known:
            raise StructureChangedError(
                f"the term of site {key[1]!r} may join the elements of site {moving[0]!r}, which were summed over one "
                f"by one so far{f' ({self.known.reason})' if self.known.reason else ''}"
            )
        name = moving[0]
        each = msg["fn"].base_dist.log_prob(msg["value"])
        beside = [d for d in range(-msg["fn"].reinterpreted_batch_ndims, 0) if d != axis]
        each = padded(each.sum(beside) if beside else each, self.batch_dims + 1)
        log_q = padded(self.log_q[name], self.batch_dims + 1)
        rows = torch.arange(len(log_q), device=log_q.device) // self.particles
        possible = (rows < self.values[name]).reshape(-1, *[1] * (log_q.dim() - 1)) & (log_q > -math.inf)
        weighed = torch.where(possible, log_q, 0.0).exp() * torch.where(possible, each, 0.0)
        term = torch.where(possible, weighed, 0.0).sum(-1)
        return scale_and_mask(term, msg["scale"], msg["mask"]).sum()

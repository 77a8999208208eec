r"""The doubly reparameterised gradient of the importance-weighted bound at continuous sites.

.. math:: \nabla_\phi L = E\Big[\sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big]

in place of :math:`\sum_k \tilde w_k \nabla_\phi \log w_k`, whose score :math:`-\tilde w_k \nabla_\phi \log q(z_k)` is
reparameterised once more. That holds given everything drawn before, so nothing drawn later may depend on the site. The
model's gradient stays as it is.

Source: Tucker, Lawson, Gu and Maddison (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives;
on hierarchies Bauer and Mnih (2021), Generalized doubly reparameterized gradient estimators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.bound_costs import Datum
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair, trace_pair
from pyro_discrete.programs.sites import family_of, is_latent, sample_sites, site_log_prob

__all__ = ["DoublyValue", "doubly_sites", "doubly_weighted", "with_fixed_parameters"]


@dataclass(frozen=True)
class DoublyValue:
    """The value of a site that takes the doubly reparameterised gradient, and the inner particles that it is of."""

    value: Tensor
    event_dim: int
    datum: Datum
    first: int
    count: int


@torch.enable_grad()
def doubly_sites(pair: Pair, trial: Trial, datum: frozenset[str]) -> frozenset[str]:
    """The guide's reparameterised sites that no later site of it depends on, as far as gradients can tell."""
    guide = sample_sites(trace_pair(pair, trial.subsamples)[0])
    found: set[str] = set()
    values: dict[Any, str] = {}
    for name, msg in guide.items():
        later = _nodes(site_log_prob({**msg, "value": msg["value"].detach()}) if is_latent(msg) else site_log_prob(msg))
        found -= {other for node, other in values.items() if node in later}
        inside = datum <= {p.name for p in plates_of(msg)}
        if is_latent(msg) and inside and family_of(msg["fn"]) is None and msg["value"].grad_fn is not None:
            values[msg["value"].grad_fn] = name
            found.add(name)
    return frozenset(found)


def _nodes(tensor: Tensor) -> set[Any]:
    """The nodes of a tensor's autograd graph."""
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return seen


def with_fixed_parameters(log_q: Tensor, at_fixed_value: Tensor) -> Tensor:
    """log q(z), differentiable in z alone: from it, and from log q at the same z held fixed."""
    return log_q - at_fixed_value + at_fixed_value.detach()


def doubly_weighted(loss: Tensor, values: Sequence[DoublyValue], log_weights: Mapping[Datum, Tensor]) -> Tensor:
    """What is to be added to a loss `[]` so that the gradient that reaches each value is multiplied by its weight."""
    inputs = [v.value for v in values if v.value.requires_grad]
    if not inputs:
        return torch.zeros_like(loss)
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    extra = torch.zeros_like(loss)
    for gradient, site in zip(found, [v for v in values if v.value.requires_grad], strict=True):
        if gradient is not None:
            weight = _beside(log_weights[site.datum].detach(), site)
            extra = extra + ((weight - 1) * gradient * site.value).sum()
    return extra


def _beside(log_weights: Tensor, site: DoublyValue) -> Tensor:
    """The normalised weights of column 0, in every column, beside the site's value."""
    weights = log_weights[:1].softmax(2)[:, :, site.first : site.first + site.count]
    weights = weights.expand(log_weights.shape[0], *weights.shape[1:]).flatten(0, 2)
    batch = site.value.dim() - site.event_dim
    kept = tuple(weights.shape[weights.dim() - batch :]) if batch else ()
    return weights.reshape(kept + (1,) * site.event_dim)

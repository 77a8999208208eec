"""An estimator on one site without a program: many independent estimates at once, and the exact answer."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete.estimators.base import Draw, Estimator
from pyro_discrete.families import Family
from pyro_discrete.programs.sites import Site

MAKE = {Family.BERNOULLI: dist.Bernoulli, Family.CATEGORICAL: dist.Categorical, Family.ONE_HOT: dist.OneHotCategorical}

Cost = Callable[[Tensor], Tensor]


def site_at(logits: Tensor, family: Family, event: int = 0) -> Site:
    """A site `[K]` with the logits `[K, ...]`, its last `event` dims made an event."""
    return Site(
        {"name": "z", "fn": MAKE[family](logits=logits).to_event(event), "cond_indep_stack": ()}, (1, len(logits)), 0
    )


def estimates(
    estimator: Estimator, logits: Tensor, family: Family, cost: Cost, draws: int, event: int = 0, groups: int = 1
) -> Tensor:
    """`draws` estimates of the gradient of E[cost(z)] on the logits, `[draws, *logits.shape]`, each a particle's.

    `cost` takes values `[rows, K, *event]` to `[rows, K]`. The estimator is called `groups` times, with draws / groups
    particles each.
    """
    found = []
    for _ in range(groups):
        phi = logits.expand(draws // groups, *logits.shape).clone().requires_grad_()
        site = site_at(phi, family, event)
        draw = estimator.draw(site)
        filled = Draw.replace(draw, log_q=site.log_mass(draw.value[0]), event_dim=site.event_dim)
        assert len(draw.value) == estimator.rows(site)
        torch.as_tensor(estimator.surrogate(filled, cost(draw.value).detach()).loss).sum().backward()
        assert phi.grad is not None
        found.append(phi.grad)
    return torch.cat(found)


def exact(logits: Tensor, family: Family, cost: Cost, event: int = 0) -> Tensor:
    """The gradient of E[cost(z)] by enumeration."""
    phi = logits.unsqueeze(0).clone().requires_grad_()
    site = site_at(phi, family, event)
    support = site.support()
    (site.log_mass(support).exp() * cost(support)).sum().backward()
    assert phi.grad is not None
    return phi.grad[0]


def worst_z(found: Tensor, truth: Tensor) -> float:
    """The largest distance of the mean of `[draws, ...]` from `truth` `[...]`, in its standard errors."""
    error = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - truth).abs() / error.clamp(min=1e-12)).max().item()

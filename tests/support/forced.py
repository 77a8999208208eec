"""The exact mean of an estimator's gradient, by forcing every joint value of some bits on its draws."""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from pyro import poutine

from pyro_discrete import Reinforce
from pyro_discrete.estimators import Draw


class Forced(Reinforce):
    """The score function at values that a test chooses."""

    forced: ClassVar[dict[str, float]] = {}

    def draw(self, site):
        value = site.sample()
        return Draw(torch.full_like(value, Forced.forced[site.name]).unsqueeze(0))


def mean_gradient(elbo, model, guide, names, leaf):
    """The mean over all joint values of the named bits, weighed by what the guide gives them."""
    total = torch.zeros_like(leaf)
    for values in itertools.product((0.0, 1.0), repeat=len(names)):
        Forced.forced.update(zip(names, values, strict=True))
        leaf.grad = None
        elbo.loss_and_grads(model, guide)
        given = {name: torch.tensor(value, dtype=leaf.dtype) for name, value in Forced.forced.items() if name in names}
        weight = poutine.trace(poutine.condition(guide, given)).get_trace().log_prob_sum().exp()
        total += weight.detach() * leaf.grad
    leaf.grad = None
    return total

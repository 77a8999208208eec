"""The costs behind the importance-weighted bound, at weights that are far apart."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_discrete.bound_costs import BoundCosts
from pyro_discrete.costs import Costs


@pytest.mark.parametrize("apart", [1.0, 60.0, 300.0, math.inf])
def test_the_slopes_slope_is_finite_at_weights_far_apart(apart: float) -> None:
    """Learned control variates differentiate a slope; two particles, the first one's weight e^apart times smaller."""
    leaf = torch.tensor([-min(apart, 1e4), 0.0], requires_grad=True)
    log_weights = {frozenset(): (leaf if apart < math.inf else leaf * torch.tensor([math.inf, 1.0])).reshape(1, 1, 2)}
    others = BoundCosts.others_of(log_weights)
    costs = BoundCosts(log_weights, others, {}, Costs.__new__(Costs), 1.0, 2, frozenset(), (False,))
    (slope,) = torch.autograd.grad(costs.bounds[frozenset()].sum(), log_weights[frozenset()], create_graph=True)
    weight = 1 / (1 + math.exp(min(apart, 700.0)))
    expected = torch.tensor([weight, 1 - weight])
    torch.testing.assert_close(slope.flatten(), expected, rtol=1e-4, atol=1e-30)
    (second,) = torch.autograd.grad(slope.square().sum(), log_weights[frozenset()])
    assert second.isfinite().all()

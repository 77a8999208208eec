"""Hard-forward estimators without a program: the gradient that each hard draw leads to, and its exact mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from pyro_discrete.draws.noise import GumbelNoise, LogisticNoise
from pyro_discrete.estimators.base import Estimator

Cost = Callable[[Tensor], Tensor]


def gradient_given(estimator: Estimator, logits: Tensor, hard: Tensor, cost: Cost, one_hot: bool = True) -> Tensor:
    """The estimate on `logits`, in their shape, if the draw is `hard`; the cost takes a value to a scalar."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GumbelNoise if one_hot else LogisticNoise, "read", lambda law, noise: hard)
        phi = logits.clone().requires_grad_()
        value = estimator.weights(phi, 0, one_hot)  # type: ignore[operator]
    assert torch.equal(value, hard)
    (gradient,) = torch.autograd.grad(cost(value), phi)
    return gradient


def outcomes(logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every joint one-hot value of `[sites, categories]` with its probability."""
    sites, categories = logits.shape
    eye, log_p = torch.eye(categories, dtype=logits.dtype), logits.log_softmax(-1)
    for index in product(range(categories), repeat=sites):
        hard = eye[list(index)]
        yield hard, (hard * log_p).sum().exp()


def expected_gradient(estimator: Estimator, logits: Tensor, cost: Cost) -> Tensor:
    """The mean of the estimate over every joint draw of `[sites, categories]` logits."""
    return torch.stack([p * gradient_given(estimator, logits, hard, cost) for hard, p in outcomes(logits)]).sum(0)


def exact_gradient(logits: Tensor, cost: Cost) -> Tensor:
    """The gradient of the expected cost."""
    phi = logits.clone().requires_grad_()
    total = torch.stack([p * cost(hard) for hard, p in outcomes(phi)]).sum()
    (gradient,) = torch.autograd.grad(total, phi)
    return gradient

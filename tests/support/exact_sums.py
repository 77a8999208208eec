"""A pair's exact loss and gradient, compared with what every joint value gives."""

import pyro
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.testing import Oracle
from tests.support.pairs import gradients


def nothing():
    """A guide without sites."""


def agrees(model, guide, estimator="enumerate", exact=None, **settings):
    """The plan; `exact`: what the oracle has found, where several estimators are held against it."""
    elbo = TraceELBO(estimator, **settings)
    exact = Oracle()(model, guide) if exact is None else exact
    assert elbo.loss(model, guide) == pytest.approx(exact.loss, abs=1e-4)
    for _ in range(2):  # a captured step, from the second on
        for value in pyro.get_param_store().values():
            value.unconstrained().grad = None
        assert elbo.loss_and_grads(model, guide) == pytest.approx(exact.loss, abs=1e-4)
        for name, gradient in gradients().items():
            assert torch.allclose(gradient, exact.gradients[name].to(gradient), atol=1e-4)
    return elbo.plan

"""A pair's exact loss and gradient, compared with what every joint value gives."""

import pyro
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.testing import exact_gradient, exact_loss
from tests.support.pairs import gradients


def nothing():
    """A guide without sites."""


def agrees(model, guide, estimator="enumerate", **settings):
    elbo = TraceELBO(estimator, **settings)
    exact, wanted = float(exact_loss(model, guide)), exact_gradient(model, guide)
    assert elbo.loss(model, guide) == pytest.approx(exact, abs=1e-4)
    for _ in range(2):  # a captured step, from the second on
        for value in pyro.get_param_store().values():
            value.unconstrained().grad = None
        assert elbo.loss_and_grads(model, guide) == pytest.approx(exact, abs=1e-4)
        for name, gradient in gradients().items():
            assert torch.allclose(gradient, wanted[name].to(gradient), atol=1e-4)
    return elbo.plan

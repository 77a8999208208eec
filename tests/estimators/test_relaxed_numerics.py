"""Relaxed draws at any temperature and size, in single precision and under autocast, with impossible categories."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_discrete import TraceELBO, available_estimators
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

RELAXED = [
    (info.cls, number)
    for info in available_estimators().values()
    if issubclass(info.cls, RelaxedEstimator)
    for number in range(len(info.cls.variants()))
]
NAMES = [f"{cls.name}-{number}" for cls, number in RELAXED]


def at(cls, number, temperature):
    estimator = cls.variants()[number]
    estimator.temperature = temperature
    return estimator


def check(value, logits, slope, one_hot):
    """In the support, with a finite gradient."""
    assert value.dtype == torch.float32
    assert bool(value.isfinite().all())
    assert bool((value >= 0).all())
    assert bool((value <= 1 + 1e-6).all())
    if one_hot:
        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]), rtol=0, atol=2e-4)
    (value * slope).sum().backward()
    assert bool(logits.grad.isfinite().all())
    logits.grad = None


@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
@pytest.mark.parametrize(("cls", "number"), RELAXED, ids=NAMES)
def test_support_and_slopes(cls, number, temperature):
    """2 to 10,000 categories, logits of size 1 and 50, some of them -inf; bits with logits up to infinity."""
    torch.manual_seed(0)
    estimator = at(cls, number, temperature)
    for categories, size in ((2, 1.0), (10, 50.0), (10_000, 1.0), (10_000, 50.0)):
        logits = size * torch.randn(4, categories)
        logits[:, 0] = -torch.inf
        logits = logits.log_softmax(-1).requires_grad_()
        value = estimator.weights(logits, 0, True)
        assert bool((value[:, 0] == 0).all())
        check(value, logits, torch.randn(4, categories), True)
    bits = torch.tensor([0.0, 1e-3, -1.0, 50.0, -50.0, 1e4, -1e4, -torch.inf, torch.inf]).requires_grad_()
    value = estimator.weights(bits, 0, False)
    assert value[-2:].tolist() == [0.0, 1.0]
    check(value, bits, torch.randn(9), False)


class Networks(nn.Module):
    """One-hot variables and bits between two linear maps, which compute in bfloat16 under autocast."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4 * 3 + 5), nn.Linear(4 * 3 + 5, 6)

    def model(self, x):
        pyro.module("networks", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(4, 3)).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=torch.zeros(5)).to_event(1))
            code = torch.cat([z.flatten(-2), b], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(code)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            code = self.encoder(x)
            logits = code[..., :12].unflatten(-1, (4, 3))
            impossible = torch.zeros(4, 3).index_fill(-1, torch.tensor([1]), -torch.inf)
            pyro.sample("z", dist.OneHotCategorical(logits=logits + impossible).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=code[..., 12:]).to_event(1))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("cls", "number"), RELAXED, ids=NAMES)
def test_networks_under_autocast_and_a_category_without_probability(cls, number, temperature):
    pyro.clear_param_store()
    torch.manual_seed(0)
    networks, x = Networks(), torch.rand(8, 6).round()
    for autocast in (False, True):
        elbo = TraceELBO(at(cls, number, temperature))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = elbo.loss_and_grads(networks.model, networks.guide, x)
        assert loss < float("inf")
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in networks.parameters())
        assert networks.encoder.weight.grad.abs().sum() > 0 or temperature == 0.01

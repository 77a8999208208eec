"""In which order the guide draws: so that a datum's discrete sites can be summed out given all that is continuous."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_discrete import AutoDiscreteMeanField, TraceELBO

X = torch.cat([torch.randn(20, generator=torch.Generator().manual_seed(0)) - 2, torch.linspace(0.0, 3.0, 15)])


def bayesian_mixture(family: str, plate: str = "data") -> Any:
    """Means, weights and a class of each datum; what is continuous comes first, or last where the data are local."""
    size = 2 if family == "Bernoulli" else 3

    def model(x: Tensor) -> None:
        locs = torch.stack([pyro.sample(f"loc{i}", dist.Normal(2.0 * i - 2, 2.0)) for i in range(size)], -1)
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(size)))
        with pyro.plate(plate, len(x)):
            if family == "Bernoulli":
                z = pyro.sample("z", dist.Bernoulli(weights[..., 1]))
            elif family == "Categorical":
                z = pyro.sample("z", dist.Categorical(weights))
            else:
                z = pyro.sample("z", dist.OneHotCategorical(weights))
            if family == "OneHotCategorical":
                loc = sum(z[..., i] * locs[..., i] for i in range(size))
            else:
                loc = sum((z == i) * locs[..., i] for i in range(size))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


def narrow(guide: Any, names: list[str]) -> None:
    """Make the continuous draws the same in each step, but for a ten-thousandth."""
    for name in names:
        scale = getattr(guide.continuous.scales, name)
        setattr(guide.continuous.scales, name, torch.full_like(scale, 1e-4))


@pytest.mark.parametrize("spec", ["auto", "enumerate"])
@pytest.mark.parametrize("amortize", [False, True])
@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "OneHotCategorical"])
def test_the_class_of_a_datum_is_summed_out(family: str, amortize: bool, spec: str) -> None:
    """The gradient of the logits is the closed form at the continuous draws; a network's is the same in each step."""
    model, size = bayesian_mixture(family), 2 if family == "Bernoulli" else 3
    names = [f"loc{i}" for i in range(size)]
    guide = AutoDiscreteMeanField(model, amortize=amortize)
    guide(X)
    narrow(guide, [*names, "weights"])
    elbo, grads = TraceELBO(spec), []
    for _ in range(3):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, X)
        own = {n: p for n, p in guide.named_parameters() if not n.startswith("continuous")}
        grads.append({n: p.grad.clone() for n, p in own.items() if p.grad is not None})
    assert elbo.plan.path == "enumerated"
    expected = grads[0]
    if not amortize:
        ((key, logits),) = own.items()
        means = torch.stack([getattr(guide.continuous.locs, name).detach() for name in names])
        weights = biject_to(constraints.simplex)(guide.continuous.locs.weights.detach())
        both = torch.stack([torch.zeros_like(logits), logits], -1) if family == "Bernoulli" else logits
        q = both.log_softmax(-1)
        joint = weights.log() + dist.Normal(means, 1.0).log_prob(X[:, None])
        expected = {key: torch.autograd.grad((q.exp() * (q - joint)).sum(), logits)[0]}
    for found in grads:
        for name, gradient in expected.items():
            assert float((found[name] - gradient).abs().max()) < 0.01 * (1 + float(gradient.abs().max())), name


def order_of(model: Any, **settings: Any) -> list[str]:
    guide = AutoDiscreteMeanField(model, **settings)
    trace = poutine.trace(guide).get_trace(X)
    drawn = [n for n, m in trace.nodes.items() if m["type"] == "sample"]
    return [n for n in drawn if not n.startswith("data") and not n.endswith("_unconstrained")]


@pytest.mark.parametrize("amortize", [False, 3])
def test_continuous_then_shared_then_local(amortize: bool | int) -> None:
    def mixed(x: Tensor) -> None:
        data = pyro.plate("data", len(x))
        with data:
            local = pyro.sample("local", dist.Bernoulli(0.3))
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        shared = pyro.sample("shared", dist.Categorical(torch.ones(3) / 3))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with data:
            pyro.sample("x", dist.Normal(local + noise + shared + loc, 1.0), obs=x)

    assert order_of(mixed, amortize=amortize)[-2:] == ["shared", "local"]
    elbo = TraceELBO("enumerate")
    guide = AutoDiscreteMeanField(mixed, amortize=amortize)
    assert math.isfinite(elbo.loss_and_grads(mixed, guide, X))
    assert elbo.plan.path == "enumerated"


def test_a_chain_keeps_its_order() -> None:
    def chain(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        z: Any = None
        for t in pyro.markov(range(4)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(0.5 if z is None else 0.3 + 0.4 * z))
            with pyro.plate(f"data{t}", 2):
                w = pyro.sample(f"w{t}", dist.Bernoulli(0.3 + 0.2 * z))
                pyro.sample(f"x{t}", dist.Normal(z + w + loc, 1.0), obs=x[2 * t : 2 * t + 2])
        pyro.sample("last", dist.Bernoulli(0.5))

    assert order_of(chain) == ["loc", *[f"{s}{t}" for t in range(4) for s in "zw"], "last"]
    guide = AutoDiscreteMeanField(chain)
    assert math.isfinite(TraceELBO("enumerate").loss_and_grads(chain, guide, X))


@pytest.mark.parametrize("amortize", [False, 5])
def test_a_subsampled_mixture(amortize: bool | int) -> None:
    """The loss of subsamples is in the mean that of all data; two continuous guides share the plate's subsample."""

    def model(x: Tensor, size: int | None = None) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            offset = pyro.sample("offset", dist.Normal(0.0, 0.5))
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(loc * z + offset, 1.0), obs=x[index])

    x = X[:12]
    guide = AutoDiscreteMeanField(lambda x: model(x, 4), amortize=amortize)
    guide(x)
    narrow(guide, ["loc", "offset"])
    elbo = TraceELBO("enumerate")
    losses = torch.tensor([elbo.loss(lambda x: model(x, 4), guide, x) for _ in range(100)])
    whole = AutoDiscreteMeanField(lambda x: model(x), amortize=amortize)
    whole(x)
    whole.load_state_dict(guide.state_dict())
    exact = TraceELBO("enumerate").loss(lambda x: model(x), whole, x)
    # Six standard errors of the mean: a false alarm in 2e-9 of all seeds.
    assert abs(float(losses.mean()) - exact) < 6 * float(losses.std()) / math.sqrt(100) + 1e-3

"""Models for the guide that is made from a model, their exact gradients, and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_discrete import AutoDiscreteMeanField, TraceELBO
from pyro_discrete.diagnostics import exact_gradient

X = torch.tensor([-1.0, 0.3, 1.4])
LEVELS = torch.tensor([-1.0, 0.5, 2.0])


def bits(x: Tensor) -> None:
    """A global bit, local bits of two elements each."""
    top = pyro.sample("top", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.6])).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + top, 1.0), obs=x)


def categories(x: Tensor) -> None:
    """Integer and one-hot categories, and a count of finite support."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        h = pyro.sample("h", dist.OneHotCategorical(torch.tensor([0.7, 0.3])))
        n = pyro.sample("n", dist.Binomial(2, torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(LEVELS[k] + h[..., 1] - n, 1.0), obs=x)


def chain(x: Tensor) -> None:
    """A masked chain in pyro.markov: the last of two sequences has one step."""
    there: Any = torch.tensor([[True, True, True], [True, False, False]])
    with pyro.plate("data", 2):
        logits = torch.tensor([0.3, -0.2])
        for t in pyro.markov(range(3)):
            with poutine.mask(mask=there[:, t]):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
                pyro.sample(f"x_{t}", dist.Normal(LEVELS[z], 1.0), obs=x[:2])
            logits = torch.tensor([[1.0, -0.5], [0.0, 0.7]])[z]


def inner_mask(x: Tensor) -> None:
    """A mask of the distribution, on one element of a site."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])).mask(torch.tensor([True, False])).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


PROGRAMS: dict[str, Callable[[Tensor], None]] = {
    "bits": bits,
    "categories": categories,
    "chain": chain,
    "inner mask": inner_mask,
}
AMORTIZE = {"free": False, "network": 3}


def made(model: Any, x: Tensor = X, **settings: Any) -> AutoDiscreteMeanField:
    """A guide with parameters that are far from symmetric."""
    guide = AutoDiscreteMeanField(model, **settings)
    guide(x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.7 * torch.randn(parameter.shape))
    return guide


def gradients(elbo: TraceELBO, model: Any, guide: nn.Module, *args: Any) -> dict[str, Tensor]:
    guide.zero_grad()
    elbo.loss_and_grads(model, guide, *args)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in guide.named_parameters()}


def brute_force(model: Any, guide: nn.Module, *args: Any) -> dict[str, Tensor]:
    found = exact_gradient(model, guide, *args)
    by_id = {id(p): n for n, p in guide.named_parameters()}
    oracle = {n.split("AutoDiscreteMeanField.")[-1].split("guide.")[-1]: g for n, g in found.items()}
    return {n: _of(oracle, n, guide) for n in by_id.values()}


def _of(found: dict[str, Tensor], name: str, guide: nn.Module) -> Tensor:
    plain = {key.replace("$$$", ".").removesuffix("_unconstrained"): g for key, g in found.items()}
    return plain[name.removesuffix("_unconstrained")]


def train(model: Any, guide: Any, *args: Any, estimator: str = "enumerate", steps: int = 300, lr: float = 0.05) -> None:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), TraceELBO(estimator, num_particles=4))
    for _ in range(steps):
        svi.step(*args)


def posterior(x: Tensor) -> Tensor:
    """p(k | x) of `mixture`."""
    log_joint = dist.Normal(LEVELS, 1.0).log_prob(x.unsqueeze(-1)) + torch.tensor([0.5, 0.3, 0.2]).log()
    return log_joint.softmax(-1)


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("x", dist.Normal(LEVELS[k], 1.0), obs=x)

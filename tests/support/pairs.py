"""Small model/guide pairs that the engine's tests share."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

DATA = torch.tensor([0.3, -0.7, 1.2])


class OwnCount(dist.Poisson):
    """A count without an end of a class of its own, of whose tail nothing is known."""


def mixture(x: Tensor) -> None:
    """One Bernoulli a datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def mixture_guide(x: Tensor) -> None:
    logit = pyro.param("logit", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logit + 0.5 * x))


def layers(x: Tensor) -> None:
    """Two dependent layers: four bits, then one."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Bernoulli(0.4))
        z1 = pyro.sample("z1", dist.Bernoulli(logits=(z2.unsqueeze(-1) - 0.5).expand(*z2.shape, 2)).to_event(1))
        pyro.sample("x", dist.Normal(z1.sum(-1), 1.0), obs=x)


def layers_guide(x: Tensor) -> None:
    a, b = pyro.param("a", torch.tensor([0.2, -0.3])), pyro.param("b", torch.tensor(0.6))
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Bernoulli(logits=a + x.unsqueeze(-1)).to_event(1))
        pyro.sample("z2", dist.Bernoulli(logits=b * z1.sum(-1)))


def gradients(prefix: str = "estimators") -> dict[str, Tensor]:
    """The gradients of all parameters but the estimators' own, cleared on the way."""
    found = {}
    for name, parameter in pyro.get_param_store().named_parameters():
        if not name.startswith(prefix) and parameter.grad is not None:
            found[name] = parameter.grad.clone()
            parameter.grad = None
    return found


def chain_guide(x):
    """A bit for each datum, and one that depends on it."""
    phi = pyro.param("phi", torch.tensor(0.4, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(logits=phi * x))
        pyro.sample("b", dist.Bernoulli(logits=x - phi * a))

"""Test programs about sites: families, event dims, layers, shared parameters.

Each is written for particles in leading dims (`[..., ]` indexing), has targets off the middle so that a sign error
shows, logits within 4, and few enough joint values to enumerate.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, ONE_HOT, Pair, leaf, linear, program


@program(BERNOULLI)
def fair_bernoulli(dtype: torch.dtype) -> Pair:
    """One site at probability one half, where a good baseline leaves next to no variance: small biases show."""
    phi, target = leaf(0.0, dtype), torch.tensor(1.7, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=dtype)))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=target)

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=phi))

    return Pair(model, guide, (), {"phi": phi})


@program(BERNOULLI)
def one_bernoulli(dtype: torch.dtype) -> Pair:
    """One site, parameters in the param store, the model's constrained."""
    target = torch.tensor(0.4, dtype=dtype)

    def model() -> None:
        prior = pyro.param("prior", torch.tensor(-0.3, dtype=dtype))
        width = pyro.param("width", torch.tensor(0.8, dtype=dtype), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Bernoulli(logits=prior))
        pyro.sample("x", dist.Normal(1.5 * z - 0.6, width), obs=target)

    def guide() -> None:
        p = pyro.param("p", torch.tensor(0.3, dtype=dtype), constraint=dist.constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(p))

    return Pair(model, guide)


@program(BERNOULLI)
def bernoulli_event(dtype: torch.dtype) -> Pair:
    """Three bits in one event that share a logit and have one each; a quadratic reward by `pyro.factor`."""
    shared, own = leaf(0.4, dtype), leaf([0.0, -1.5, 1.0], dtype)
    target = torch.tensor([0.6, 0.1, 0.48], dtype=dtype)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.5, dtype=dtype)).to_event(1))
        pyro.factor("reward", -2 * (b - target).square().sum(-1) + b[..., 0] * b[..., 2])

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=shared + own).to_event(1))

    return Pair(model, guide, (), {"shared": shared, "own": own})


@program(CATEGORICAL)
def one_categorical(dtype: torch.dtype) -> Pair:
    """An integer that indexes a table."""
    phi, table = leaf([0.5, -1.0, 0.2], dtype), leaf([-1.0, 0.3, 1.4], dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=dtype)))
        pyro.sample("x", dist.Normal(table[z], 0.7), obs=target)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=phi))

    return Pair(model, guide, (), {"phi": phi, "table": table})


@program(CATEGORICAL)
def categorical_event(dtype: torch.dtype) -> Pair:
    """Two integers in one event."""
    phi, table = leaf([[0.5, -1.0, 0.2], [1.2, 0.0, -0.4]], dtype), leaf([-1.0, 0.3, 1.4], dtype)
    target = torch.tensor(1.1, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.full((2, 3), 1 / 3, dtype=dtype)).to_event(1))
        pyro.sample("x", dist.Normal(table[z].prod(-1), 0.8), obs=target)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=phi).to_event(1))

    return Pair(model, guide, (), {"phi": phi, "table": table})


@program(ONE_HOT)
def one_hot_event(dtype: torch.dtype) -> Pair:
    """Two one-hot vectors in one event."""
    phi = leaf([[0.5, -1.0, 0.2], [1.2, 0.0, -0.4]], dtype)
    weight = leaf([[0.4, -1.0, 0.9], [0.7, 0.1, -0.8]], dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.OneHotCategorical(torch.full((2, 3), 1 / 3, dtype=dtype)).to_event(1))
        pyro.sample("x", dist.Normal((z * weight).sum((-2, -1)).square(), 0.9), obs=target)

    def guide() -> None:
        pyro.sample("z", dist.OneHotCategorical(logits=phi).to_event(1))

    return Pair(model, guide, (), {"phi": phi, "weight": weight})


@program(BERNOULLI)
def two_layers(dtype: torch.dtype) -> Pair:
    """A sigmoid belief network of two layers, its modules captured in closures."""
    torch.manual_seed(3)
    encoder, up = linear(2, 2, dtype), linear(2, 2, dtype)
    down, decoder = linear(2, 2, dtype), linear(2, 2, dtype)
    data = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z2 = pyro.sample("z2", dist.Bernoulli(torch.full((2,), 0.4, dtype=dtype)).to_event(1))
            z1 = pyro.sample("z1", dist.Bernoulli(logits=3 * down(z2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=3 * decoder(z1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=2 * encoder(x)).to_event(1))
            pyro.sample("z2", dist.Bernoulli(logits=2 * up(z1)).to_event(1))

    modules = {"encoder": encoder, "up": up, "down": down, "decoder": decoder}
    named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    return Pair(model, guide, (data,), named)


@program(BERNOULLI, CATEGORICAL, ONE_HOT)
def mixed_chain(dtype: torch.dtype) -> Pair:
    """A bit that feeds an integer that feeds a one-hot vector; each layer also reaches the data directly."""
    phi, chi = leaf(-0.6, dtype), leaf([[0.2, 0.9, -0.5], [-1.0, 0.4, 0.8]], dtype)
    psi = leaf([[0.3, -0.4, 1.0], [1.5, 0.0, 0.2], [-0.7, 0.6, 0.1]], dtype)
    weight = leaf([0.9, -0.5, 0.3], dtype)
    target = torch.tensor(1.3, dtype=dtype)

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
        b = pyro.sample("b", dist.Categorical(logits=torch.stack([a, 1 - a, 0.5 * a], -1)))
        c = pyro.sample("c", dist.OneHotCategorical(logits=weight * (b.unsqueeze(-1) - 1.0)))
        pyro.sample("x", dist.Normal(a - 0.5 * b + (c * weight).sum(-1), 0.8), obs=target)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=phi))
        b = pyro.sample("b", dist.Categorical(logits=chi[a.long()]))
        pyro.sample("c", dist.OneHotCategorical(logits=psi[b]))

    return Pair(model, guide, (), {"phi": phi, "chi": chi, "psi": psi, "weight": weight})


@program(BERNOULLI)
def shared_parameters(dtype: torch.dtype) -> Pair:
    """The same parameters in the guide's logits and in the model's prior and likelihood."""
    w = leaf([0.7, -1.1], dtype)
    data = torch.tensor([1.2, -0.4], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=w[0].expand(2)))
            pyro.sample("x", dist.Normal(w[1] * z, w[0].exp()), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=w[0] * x + w[1]))

    return Pair(model, guide, (data,), {"w": w})


@program(BERNOULLI)
def separate_branches(dtype: torch.dtype) -> Pair:
    """Two layers and a bit of their own in the guide, met in another order by the model: costs hold other terms."""
    phi, psi, chi = leaf(0.4, dtype), leaf([-0.6, 1.2], dtype), leaf(0.8, dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
        b = pyro.sample("b", dist.Bernoulli(logits=1.4 * c - 0.6))
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
        pyro.sample("x", dist.Normal(a - 0.8 * b, 0.7), obs=target)
        pyro.sample("y", dist.Normal(1.5 * c, 0.8), obs=target)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=phi))
        pyro.sample("c", dist.Bernoulli(logits=chi))
        pyro.sample("b", dist.Bernoulli(logits=psi[0] + psi[1] * a))

    return Pair(model, guide, (), {"phi": phi, "psi": psi, "chi": chi})

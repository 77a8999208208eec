"""Test programs about what else a program does: masks, scales, continuous and auxiliary sites, control flow."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch import Tensor

from pyro_discrete.families import Family
from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, ONE_HOT, Pair, leaf, program


@program(ONE_HOT)
def masked_latent(dtype: torch.dtype) -> Pair:
    """`poutine.mask` on the latent site of one datum, whose likelihood is not masked: its gradient is not zero."""
    phi, weight = leaf([[0.4, -0.8], [1.1, 0.3]], dtype), leaf([1.3, -0.7], dtype)
    mask: Any = torch.tensor([True, False])
    data = torch.tensor([0.8, -0.9], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.3, 0.7], dtype=dtype)))
            pyro.sample("x", dist.Normal((z * weight).sum(-1), 0.6), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2), poutine.mask(mask=mask):
            pyro.sample("z", dist.OneHotCategorical(logits=phi))

    return Pair(model, guide, (data,), {"phi": phi, "weight": weight})


@program(BERNOULLI, CATEGORICAL)
def masked_distributions(dtype: torch.dtype) -> Pair:
    """`fn.mask` on latent sites, inside and outside `.to_event`, elementwise and altogether."""
    phi, chi = leaf([0.4, -0.8], dtype), leaf([0.2, 0.9, -0.5], dtype)
    mask: Any = torch.tensor([False, True])
    target = torch.tensor(1.5, dtype=dtype)

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(torch.tensor([0.3, 0.6], dtype=dtype)).mask(mask).to_event(1))
        b = pyro.sample("b", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=dtype)).mask(False))
        pyro.sample("x", dist.Normal(a[..., 0] - 0.7 * a[..., 1] + 0.5 * b, 0.7), obs=target)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=phi).mask(mask).to_event(1))
        pyro.sample("b", dist.Categorical(logits=chi + a[..., 1:]).mask(False))

    return Pair(model, guide, (), {"phi": phi, "chi": chi})


@program(BERNOULLI)
def scaled(dtype: torch.dtype) -> Pair:
    """`poutine.scale`: a KL weight on one latent site, other weights on the next and on the likelihood."""
    phi, psi, prior = leaf(0.6, dtype), leaf([-0.4, 1.1], dtype), leaf(-0.5, dtype)
    target = torch.tensor(1.8, dtype=dtype)

    def model() -> None:
        with poutine.scale(scale=0.3):
            a = pyro.sample("a", dist.Bernoulli(logits=prior))
        with poutine.scale(scale=2.0):
            b = pyro.sample("b", dist.Bernoulli(logits=prior + a))
        with poutine.scale(scale=0.7):
            pyro.sample("x", dist.Normal(a + b, 0.6), obs=target)

    def guide() -> None:
        with poutine.scale(scale=0.3):
            a = pyro.sample("a", dist.Bernoulli(logits=phi))
        with poutine.scale(scale=2.0):
            pyro.sample("b", dist.Bernoulli(logits=psi[0] + psi[1] * a))

    return Pair(model, guide, (), {"phi": phi, "psi": psi, "prior": prior})


@program(BERNOULLI, nodes=24)
def continuous_upstream(dtype: torch.dtype) -> Pair:
    """A reparameterised site that feeds the logits of a bit, its prior and the likelihood."""
    loc, spread, slope = leaf(0.3, dtype), leaf(-1.0, dtype), leaf(0.8, dtype)
    target = torch.tensor(1.1, dtype=dtype)

    def model() -> None:
        y = pyro.sample("y", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
        z = pyro.sample("z", dist.Bernoulli(logits=0.5 * y - 0.2))
        pyro.sample("x", dist.Normal(y * (1 + z) - 0.3, 0.7), obs=target)

    def guide() -> None:
        y = pyro.sample("y", dist.Normal(loc, spread.exp()))
        pyro.sample("z", dist.Bernoulli(logits=slope * y - 0.5))

    return Pair(model, guide, (), {"loc": loc, "spread": spread, "slope": slope})


@program(CATEGORICAL, nodes=6)
def continuous_downstream(dtype: torch.dtype) -> Pair:
    """A mixture: the integer chooses the mean and the width of a reparameterised site, in a plate."""
    phi, mean, spread = leaf([0.6, -0.7], dtype), leaf([-0.5, 1.2], dtype), leaf([-0.6, -1.2], dtype)
    prior, data = leaf([-1.0, 0.8], dtype), torch.tensor([1.0, -0.2], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=dtype)))
            y = pyro.sample("y", dist.Normal(prior[z], 1.0))
            pyro.sample("x", dist.Normal(y, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=phi * x.unsqueeze(-1)))
            pyro.sample("y", dist.Normal(mean[z], spread[z].exp()))

    return Pair(model, guide, (data,), {"phi": phi, "mean": mean, "spread": spread, "prior": prior})


@program(BERNOULLI, Family.CONTINUOUS, relaxable=False)
def not_reparameterised(dtype: torch.dtype) -> Pair:
    """A continuous site without a reparameterisation, downstream of a bit."""
    phi, loc = leaf(0.4, dtype), leaf([-0.5, 0.9], dtype)
    target = torch.tensor(1.2, dtype=dtype)
    width = torch.tensor(0.5, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 0.8), obs=target)

    def guide() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=phi))
        pyro.sample("y", NonreparameterizedNormal(loc[0] + loc[1] * z, width))

    return Pair(model, guide, (), {"phi": phi, "loc": loc})


@program(BERNOULLI, CATEGORICAL)
def auxiliary_site(dtype: torch.dtype) -> Pair:
    """A guide site that the model does not have: its -log q counts, and it feeds the latent site."""
    phi, psi = leaf([0.3, -0.6, 0.8], dtype), leaf([1.2, -0.4, 0.1], dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        pyro.sample("x", dist.Normal(1.5 * z, 0.7), obs=target)

    def guide() -> None:
        a = pyro.sample("a", dist.Categorical(logits=phi), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Bernoulli(logits=psi[a]))

    return Pair(model, guide, (), {"phi": phi, "psi": psi})


@program(BERNOULLI, CATEGORICAL, relaxable=False, vectorizable=False)
def control_flow(dtype: torch.dtype) -> Pair:
    """Python control flow on a drawn value: which sites there are differs from run to run."""
    phi, psi, chi = leaf(0.5, dtype), leaf(-0.8, dtype), leaf([0.3, 1.0, -0.9], dtype)
    target = torch.tensor(1.4, dtype=dtype)

    def model() -> None:
        if pyro.sample("a", dist.Bernoulli(torch.tensor(0.3, dtype=dtype))).item() > 0:
            value = pyro.sample("b", dist.Bernoulli(torch.tensor(0.8, dtype=dtype)))
        else:
            value = 0.6 * pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=dtype)))
        pyro.sample("x", dist.Normal(value, 0.6), obs=target)

    def guide() -> None:
        if pyro.sample("a", dist.Bernoulli(logits=phi)).item() > 0:
            pyro.sample("b", dist.Bernoulli(logits=psi))
        else:
            pyro.sample("c", dist.Categorical(logits=chi))

    return Pair(model, guide, (), {"phi": phi, "psi": psi, "chi": chi})

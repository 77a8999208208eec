"""Test programs about counts: each distribution of counts, under plates, above and below other sites.

Where a count has no end, the guide states a truncation that it exceeds with a probability below 1e-8: the exact answer
sums up to it, relaxations go up to it, and score functions draw without it.
"""

from __future__ import annotations

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor

from pyro_discrete.testing.small_programs.program import CATEGORICAL, COUNT, Pair, leaf, program

__all__ = [
    "binomials_in_a_plate",
    "categorical_over_poisson",
    "geometric_and_negative_binomial",
    "multinomial_event",
    "one_poisson",
]


def up_to(truncation: int) -> InferDict:
    """What `infer` says of the largest count that is looked at: Pyro keeps keys that its type does not list."""
    return cast(InferDict, {"truncation": truncation})


@program(COUNT)
def one_poisson(dtype: torch.dtype) -> Pair:
    """One site, the prior's rate and the slope of the likelihood learned too."""
    phi, prior, slope = leaf(-0.3, dtype), leaf(0.2, dtype), leaf(0.8, dtype)
    target = torch.tensor(1.9, dtype=dtype)

    def model() -> None:
        n = pyro.sample("n", dist.Poisson(prior.exp()))
        pyro.sample("x", dist.Normal(slope * n, 0.8), obs=target)

    def guide() -> None:
        pyro.sample("n", dist.Poisson(phi.exp()), infer=up_to(13))

    return Pair(model, guide, (), {"phi": phi, "prior": prior, "slope": slope})


@program(COUNT)
def geometric_and_negative_binomial(dtype: torch.dtype) -> Pair:
    """Two counts that the likelihood multiplies."""
    phi, chi = leaf(1.2, dtype), leaf(-1.6, dtype)
    target = torch.tensor(0.7, dtype=dtype)

    def model() -> None:
        g = pyro.sample("g", dist.Geometric(torch.tensor(0.6, dtype=dtype)))
        n = pyro.sample("n", dist.NegativeBinomial(1.5, logits=torch.tensor(-1.0, dtype=dtype)))
        pyro.sample("x", dist.Normal(0.6 * g + 0.4 * n + 0.3 * g * n, 1.1), obs=target)

    def guide() -> None:
        pyro.sample("g", dist.Geometric(logits=phi), infer=up_to(13))
        pyro.sample("n", dist.NegativeBinomial(2.0, logits=chi), infer=up_to(13))

    return Pair(model, guide, (), {"phi": phi, "chi": chi})


@program(COUNT)
def binomials_in_a_plate(dtype: torch.dtype) -> Pair:
    """Counts with an end, their parameters in guide, prior and likelihood."""
    w = leaf([0.7, -0.4], dtype)
    data = torch.tensor([1.4, 0.2], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            n = pyro.sample("n", dist.Binomial(3, logits=w[1].expand(2)))
            pyro.sample("x", dist.Normal(w[0].exp() * n - 0.2 * n * n, 0.9), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("n", dist.Binomial(3, logits=w[0] * x + w[1]))

    return Pair(model, guide, (data,), {"w": w})


@program(COUNT)
def multinomial_event(dtype: torch.dtype) -> Pair:
    """Counts of three categories in one event."""
    phi, weight = leaf([0.5, -0.8, 0.2], dtype), leaf([0.4, -1.0, 0.9], dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        n = pyro.sample("n", dist.Multinomial(2, probs=torch.tensor([0.2, 0.5, 0.3], dtype=dtype)))
        pyro.sample("x", dist.Normal((n * weight).sum(-1), 0.7), obs=target)

    def guide() -> None:
        pyro.sample("n", dist.Multinomial(2, logits=phi))

    return Pair(model, guide, (), {"phi": phi, "weight": weight})


@program(CATEGORICAL, COUNT)
def categorical_over_poisson(dtype: torch.dtype) -> Pair:
    """An integer that looks up the rate of a count, in guide and model."""
    phi, rates, levels = leaf([0.3, -0.4], dtype), leaf([-0.6, 0.4], dtype), leaf([-1.0, 0.5], dtype)
    target = torch.tensor(1.1, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6], dtype=dtype)))
        n = pyro.sample("n", dist.Poisson(levels.exp()[z]))
        pyro.sample("x", dist.Normal(0.9 * n - 0.5 * z, 0.8), obs=target)

    def guide() -> None:
        z = pyro.sample("z", dist.Categorical(logits=phi))
        pyro.sample("n", dist.Poisson(rates.exp()[z]), infer=up_to(15))

    return Pair(model, guide, (), {"phi": phi, "rates": rates, "levels": levels})

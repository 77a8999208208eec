"""Test programs in which the model has discrete sites that the guide does not: summed out beside sampled ones."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete.testing.small_programs.program import BERNOULLI, ONE_HOT, Pair, leaf, program


@program(BERNOULLI)
def summed_under_a_bit(dtype: torch.dtype) -> Pair:
    """In a subsampled, partly masked plate: a bit of the guide, an integer of the model below it, and one above it."""
    a, b = leaf([0.7, -0.4, 0.2], dtype), leaf([[0.4, -0.3, 0.9], [-0.6, 0.5, 0.1]], dtype)
    locs = leaf([-1.0, 0.4, 1.3], dtype)
    data = torch.tensor([0.5, -1.1, 0.8], dtype=dtype)

    def model(x: Tensor) -> None:
        seen: Any = torch.tensor([True, False, True])
        with pyro.plate("data", 3, subsample_size=2) as i, pyro.poutine.mask(mask=seen[i]):
            above = pyro.sample("above", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
            z = pyro.sample("z", dist.Bernoulli(logits=0.8 - 1.5 * above))
            logits = b[0] + z.unsqueeze(-1) * b[1]
            below = pyro.sample("below", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(locs[below] + 0.5 * z, 0.8), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3, subsample_size=2) as i:
            pyro.sample("z", dist.Bernoulli(logits=a[i]))

    return Pair(model, guide, (data,), {"a": a, "b": b, "locs": locs})


@program(BERNOULLI)
def summed_over_all_plates(dtype: torch.dtype) -> Pair:
    """A vector of bits of the model outside the plate in which the guide draws bits: it couples the elements."""
    a, w = leaf([0.3, -0.8], dtype), leaf([0.2, -0.5], dtype)
    data = torch.tensor([1.1, -0.4], dtype=dtype)

    def model(x: Tensor) -> None:
        shared = pyro.sample("shared", dist.Bernoulli(logits=w).to_event(1))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
            pyro.sample("x", dist.Normal(z * shared[..., 0] + (w * shared).sum(-1), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=a))

    return Pair(model, guide, (data,), {"a": a, "w": w})


@program(BERNOULLI)
def summed_chain(dtype: torch.dtype) -> Pair:
    """A chain of the model, of second order, driven by a vector of bits that the guide draws."""
    a, t = leaf([0.4, -0.7], dtype), leaf([0.6, -0.9, 0.3], dtype)
    data = torch.tensor([0.6, -0.8, 0.1, 1.2], dtype=dtype)

    def model(x: Tensor) -> None:
        drive = pyro.sample("drive", dist.Bernoulli(torch.full((2,), 0.4, dtype=dtype)).to_event(1))
        before, last = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
        for i in pyro.markov(range(4), history=2):
            logits = t[0] * last + t[1] * before + t[2] * drive[..., i % 2]
            before, last = last, pyro.sample(f"state_{i}", dist.Bernoulli(logits=logits))
            pyro.sample(f"x_{i}", dist.Normal(last - drive[..., 0], 0.9), obs=x[i])

    def guide(x: Tensor) -> None:
        pyro.sample("drive", dist.Bernoulli(logits=a).to_event(1))

    return Pair(model, guide, (data,), {"a": a, "t": t})


@program(ONE_HOT)
def summed_nested(dtype: torch.dtype) -> Pair:
    """Nested plates, scaled: a one-hot vector of the guide, two kinds of sites of the model in the plates below."""
    a, b, c = leaf([0.5, -0.2, 0.3], dtype), leaf([0.8, -0.6, 0.1], dtype), leaf([-0.4, 1.0], dtype)
    data = torch.tensor([[0.3, 1.1], [-0.8, 0.5]], dtype=dtype)  # [word, document]

    def model(x: Tensor) -> None:
        style = pyro.sample("style", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5], dtype=dtype)))
        with pyro.poutine.scale(scale=1.7), pyro.plate("documents", 2, dim=-1):
            topic = pyro.sample("topic", dist.Bernoulli(logits=(style * b).sum(-1)))
            with pyro.plate("words", 2, dim=-2):
                flag = pyro.sample("flag", dist.Bernoulli(logits=c[0] - topic))
                pyro.sample("x", dist.Normal(flag * c[1] + 0.5 * topic, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("style", dist.OneHotCategorical(logits=a))

    return Pair(model, guide, (data,), {"a": a, "b": b, "c": c})


@program(BERNOULLI, relaxable=False, vectorizable=False)
def summed_row_by_row(dtype: torch.dtype) -> Pair:
    """Python control flow on the guide's bit decides what the model sums over."""
    a, w = leaf(0.4, dtype), leaf([0.3, -0.7], dtype)
    data = torch.tensor([0.6, -0.3], dtype=dtype)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        scale = 0.5 if z.item() > 0.5 else 1.2
        for i in map(int, pyro.plate("data", 2)):
            y = pyro.sample(f"y_{i}", dist.Bernoulli(logits=w[i] + z))
            pyro.sample(f"x_{i}", dist.Normal(y - w[0], scale), obs=x[i])

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=a))

    return Pair(model, guide, (data,), {"a": a, "w": w})

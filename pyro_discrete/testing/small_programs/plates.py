"""Test programs about plates: none, nested, crossing, sequential, subsampled, reused, and what depends across them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, ONE_HOT, Pair, leaf, linear, program


@program(ONE_HOT)
def one_hot_plate(dtype: torch.dtype) -> Pair:
    """One-hot vectors in a plate, amortised, with a learned decoder."""
    torch.manual_seed(5)
    encoder, decoder = linear(2, 3, dtype), linear(3, 2, dtype)
    data = torch.tensor([[1.0, -0.5], [0.2, 1.4]], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5], dtype=dtype)))
            pyro.sample("x", dist.Normal(2 * decoder(z), 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.OneHotCategorical(logits=2 * encoder(x)))

    modules = {"encoder": encoder, "decoder": decoder}
    return Pair(model, guide, (data,), {f"{m}.{n}": p for m, v in modules.items() for n, p in v.named_parameters()})


@program(BERNOULLI, CATEGORICAL)
def nested_plates(dtype: torch.dtype) -> Pair:
    """Documents and words: a bit for each document, an integer for each of its words."""
    data = torch.tensor([[0.3, 1.1], [-0.8, 0.5]], dtype=dtype)  # [word, document]

    def model(x: Tensor) -> None:
        table = pyro.param("table", torch.tensor([-0.6, 1.2], dtype=dtype))
        with pyro.plate("documents", 2, dim=-1):
            topic = pyro.sample("topic", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
            with pyro.plate("words", 2, dim=-2):
                word = pyro.sample("word", dist.Categorical(logits=torch.stack([topic, 1 - topic], -1)))
                pyro.sample("x", dist.Normal(table[word] + 0.5 * topic, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor([0.4, -0.9], dtype=dtype))
        b = pyro.param("b", torch.tensor([1.3, -0.5], dtype=dtype))
        with pyro.plate("documents", 2, dim=-1):
            topic = pyro.sample("topic", dist.Bernoulli(logits=a))
            with pyro.plate("words", 2, dim=-2):
                logit = b[0] * x + b[1] * topic
                pyro.sample("word", dist.Categorical(logits=torch.stack([logit, -logit], -1)))

    return Pair(model, guide, (data,))


@program(BERNOULLI)
def crossing_plates(dtype: torch.dtype) -> Pair:
    """Users and items: bits in either plate, data in both; and a bit of the guide in both."""
    a, b, c = leaf([0.5, -0.7], dtype), leaf([[1.0], [-0.2]], dtype), leaf(0.8, dtype)
    data = torch.tensor([[1.2, 0.1], [-0.6, 0.9]], dtype=dtype)

    def model(x: Tensor) -> None:
        users, items = pyro.plate("users", 2, dim=-1), pyro.plate("items", 2, dim=-2)
        with users:
            u = pyro.sample("u", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
        with items:
            v = pyro.sample("v", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
        with users, items:
            w = pyro.sample("w", dist.Bernoulli(logits=u - v))
            pyro.sample("x", dist.Normal(u * c - v + w, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        users, items = pyro.plate("users", 2, dim=-1), pyro.plate("items", 2, dim=-2)
        with users:
            u = pyro.sample("u", dist.Bernoulli(logits=a))
        with items:
            v = pyro.sample("v", dist.Bernoulli(logits=b))
        with users, items:
            pyro.sample("w", dist.Bernoulli(logits=c * x + 0.5 * u - 0.3 * v))

    return Pair(model, guide, (data,), {"a": a, "b": b, "c": c})


@program(BERNOULLI)
def sequential_plate(dtype: torch.dtype) -> Pair:
    """`for i in pyro.plate(...)`, a global bit before it, and one that the loop's bits lead to."""
    phi, psi, chi = leaf(0.3, dtype), leaf([-0.4, 0.9], dtype), leaf(1.1, dtype)
    data = torch.tensor([1.1, -0.3], dtype=dtype)

    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        total = 0.5 * g
        for i in map(int, pyro.plate("loop", 2)):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(logits=g - 0.3))
            pyro.sample(f"x_{i}", dist.Normal(z + 0.5 * g, 0.7), obs=x[i])
            total = total + z
        h = pyro.sample("h", dist.Bernoulli(logits=total - 1))
        pyro.sample("y", dist.Normal(h, 0.5), obs=x[0])

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=phi))
        last = g
        for i in map(int, pyro.plate("loop", 2)):
            last = pyro.sample(f"z_{i}", dist.Bernoulli(logits=psi[i] + g))
        pyro.sample("h", dist.Bernoulli(logits=chi * (last - 0.5)))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "chi": chi})


@program(BERNOULLI)
def subsampled(dtype: torch.dtype) -> Pair:
    """A random subsample of two out of three data, and a global bit."""
    phi, psi = leaf(0.4, dtype), leaf([0.9, -0.5, 0.3], dtype)
    data = torch.tensor([1.3, -0.4, 0.7], dtype=dtype)

    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
        with pyro.plate("data", 3, subsample_size=2) as index:
            z = pyro.sample("z", dist.Bernoulli(logits=0.5 * g))
            pyro.sample("x", dist.Normal(z - 0.6 * g, 0.8), obs=x[index])

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=phi))
        with pyro.plate("data", 3, subsample_size=2) as index:
            pyro.sample("z", dist.Bernoulli(logits=psi[index] + 0.4 * g))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi})


@program(ONE_HOT)
def ragged_subsample(dtype: torch.dtype) -> Pair:
    """The last, short batch of an epoch, its indices given by `subsample=`."""
    data, last = torch.tensor([1.3, -0.4, 0.7, 0.2, -1.0], dtype=dtype), torch.tensor([4, 2])

    def model(x: Tensor, batch: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor([-0.8, 1.4], dtype=dtype))
        with pyro.plate("data", 5, subsample=batch):
            z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.7, 0.3], dtype=dtype)))
            pyro.sample("x", dist.Normal((z * weight).sum(-1), 0.9), obs=pyro.subsample(x, event_dim=0))

    def guide(x: Tensor, batch: Tensor) -> None:
        with pyro.plate("data", 5, subsample=batch):
            start = torch.tensor([[0.4, -0.3]] * 4 + [[-1.2, 0.9]], dtype=dtype)
            logits = pyro.param("logits", start, event_dim=1)
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    return Pair(model, guide, (data, last))


@program(BERNOULLI)
def reused_plate(dtype: torch.dtype) -> Pair:
    """One plate entered twice, with a global bit between that depends on neither entry's other elements."""
    phi, psi = leaf([0.4, -0.7], dtype), leaf([0.6, -1.2, 0.5], dtype)
    data = torch.tensor([1.2, 0.2], dtype=dtype)

    def model(x: Tensor) -> None:
        plate = pyro.plate("data", 2)
        with plate:
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
        with plate:
            b = pyro.sample("b", dist.Bernoulli(logits=a - g))
            pyro.sample("x", dist.Normal(a * b + 0.5 * g, 0.6), obs=x)

    def guide(x: Tensor) -> None:
        plate = pyro.plate("data", 2)
        with plate:
            a = pyro.sample("a", dist.Bernoulli(logits=phi))
        g = pyro.sample("g", dist.Bernoulli(logits=psi[0]))
        with plate:
            pyro.sample("b", dist.Bernoulli(logits=psi[1] * a + psi[2] * g))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi})


@program(BERNOULLI)
def local_feeds_global(dtype: torch.dtype) -> Pair:
    """Local bits of the guide feed a later global one, and that every local observation and more local bits.

    The plate is the same before and after, so the other elements' terms belong to a local bit's cost.
    """
    phi, psi, chi = leaf([0.5, -0.8], dtype), leaf([2.5, -1.2], dtype), leaf([0.7, -0.5], dtype)
    data = torch.tensor([1.6, -0.5], dtype=dtype)

    def model(x: Tensor) -> None:
        plate = pyro.plate("data", 2)
        with plate:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=dtype)))
        h = pyro.sample("h", dist.Bernoulli(torch.tensor([0.4], dtype=dtype)))
        with plate:
            w = pyro.sample("w", dist.Bernoulli(torch.tensor(0.6, dtype=dtype)))
            pyro.sample("x", dist.Normal(2 * h + 0.3 * z - w, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        plate = pyro.plate("data", 2)
        with plate:
            z = pyro.sample("z", dist.Bernoulli(logits=phi))
        h = pyro.sample("h", dist.Bernoulli(logits=psi[0] * z.sum(-1, keepdim=True) + psi[1]))
        with plate:
            pyro.sample("w", dist.Bernoulli(logits=chi[0] * h + chi[1]))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "chi": chi})


@program(BERNOULLI)
def words_feed_documents(dtype: torch.dtype) -> Pair:
    """Nested plates where the inner bits feed a later bit of the outer plate, which feeds the inner observations."""
    phi, psi = leaf([[0.5, -0.8], [0.9, 0.1]], dtype), leaf([2.0, -1.5], dtype)
    data = torch.tensor([[1.6, -0.5], [0.9, 0.2]], dtype=dtype)  # [word, document]

    def model(x: Tensor) -> None:
        documents, words = pyro.plate("documents", 2, dim=-1), pyro.plate("words", 2, dim=-2)
        with documents, words:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=dtype)))
        with documents:
            h = pyro.sample("h", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        with documents, words:
            pyro.sample("x", dist.Normal(1.5 * h + 0.3 * z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        documents, words = pyro.plate("documents", 2, dim=-1), pyro.plate("words", 2, dim=-2)
        with documents, words:
            z = pyro.sample("z", dist.Bernoulli(logits=phi))
        with documents:
            pyro.sample("h", dist.Bernoulli(logits=psi[0] * z.sum(-2, keepdim=True) + psi[1]))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi})


@program(CATEGORICAL)
def local_feeds_local(dtype: torch.dtype) -> Pair:
    """The elements of a plate mixed on the way to the next plate: a sum over the first reaches all of the second."""
    phi, psi = leaf([[0.5, -0.8], [1.0, 0.2]], dtype), leaf([1.4, -0.9], dtype)
    data = torch.tensor([1.6, -0.5], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("first", 2):
            pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6], dtype=dtype)))
        with pyro.plate("second", 2):
            w = pyro.sample("w", dist.Categorical(torch.tensor([0.3, 0.7], dtype=dtype)))
            pyro.sample("x", dist.Normal(2.0 * w, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("first", 2):
            z = pyro.sample("z", dist.Categorical(logits=phi))
        with pyro.plate("second", 2):
            logit = psi[0] * z.sum(-1, keepdim=True) + psi[1] * x
            pyro.sample("w", dist.Categorical(logits=torch.stack([-logit, logit], -1)))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi})


@program(BERNOULLI)
def partly_observed(dtype: torch.dtype) -> Pair:
    """`obs_mask`: the guide gives the missing datum, which feeds an observation of its own."""
    phi, weight = leaf([0.2, -0.6], dtype), leaf(1.4, dtype)
    mask: Any = torch.tensor([True, False])
    bits, data = torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.8, 1.1], dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.3, 0.6], dtype=dtype)), obs=bits, obs_mask=mask)
            pyro.sample("x", dist.Normal(weight * b, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2), pyro.poutine.mask(mask=~mask):
            pyro.sample("b_unobserved", dist.Bernoulli(logits=phi))

    return Pair(model, guide, (data,), {"phi": phi, "weight": weight})

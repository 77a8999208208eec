"""Test programs under the importance-weighted bound, each with its exact answer by brute force over all K-tuples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete.diagnostics.exact import BoundOracle
from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, ONE_HOT, Pair, Program, leaf, program

__all__ = [
    "DATA",
    "bounded",
    "categories_in_documents",
    "global_and_layers",
    "global_category",
    "words_in_documents",
]


DATA: dict[str, tuple[tuple[str, ...], float]] = {
    **dict.fromkeys(["one_bernoulli", "bernoulli_event", "one_categorical", "mixed_chain"], ((), 1.0)),
    **dict.fromkeys(["masked_distributions", "auxiliary_site", "control_flow", "not_reparameterised"], ((), 1.0)),
    **dict.fromkeys(["shared_parameters", "masked_latent", "one_hot_plate", "partly_observed"], (("data",), 1.0)),
    **dict.fromkeys(["nested_plates", "words_feed_documents"], (("documents",), 1.0)),
    "two_structures": ((), 1.0),
    "subsampled": (("data",), 1.5),
    "ragged_subsample": (("data",), 2.5),
    "global_and_layers": (("data",), 1.5),
    "words_in_documents": (("documents",), 1.5),
    "global_category": (("data",), 2.0),
    "categories_in_documents": (("documents",), 2.0),
}
"""The plates of independent data of each program, and what multiplies its bound: said here, not worked out."""


def bounded(programs: Iterable[Program], particles: int) -> list[Program]:
    """Those of the programs that `DATA` is about, with the exact bound of so many particles as their answer; and those
    that bring an answer of their own.
    """
    out = []
    for each in programs:
        if each.oracle is not None:
            out.append(each)
        elif each.name in DATA:
            plates, scale = DATA[each.name]
            oracle = BoundOracle(particles, plates, scale, nodes=each.nodes)
            out.append(replace(each, oracle=oracle))
    return out


@program(BERNOULLI)
def global_and_layers(dtype: torch.dtype) -> Pair:
    """A global bit, drawn once for all particles, and two dependent layers of bits for each of a subsample's data."""
    phi, psi, chi = leaf(0.4, dtype), leaf([0.9, -0.5, 0.3], dtype), leaf([1.2, -0.7], dtype)
    weight, data = leaf([1.1, -0.6], dtype), torch.tensor([1.3, -0.4, 0.7], dtype=dtype)

    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
        with pyro.plate("data", 3, subsample_size=2) as index:
            a = pyro.sample("a", dist.Bernoulli(logits=0.8 * g))
            b = pyro.sample("b", dist.Bernoulli(logits=a - 0.4))
            pyro.sample("x", dist.Normal(weight[0] * b + weight[1] * g * a, 0.6), obs=x[index])

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=phi))
        with pyro.plate("data", 3, subsample_size=2) as index:
            b = pyro.sample("b", dist.Bernoulli(logits=psi[index] + 0.4 * g))
            pyro.sample("a", dist.Bernoulli(logits=chi[0] * b + chi[1]))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "chi": chi, "weight": weight})


@program(BERNOULLI)
def words_in_documents(dtype: torch.dtype) -> Pair:
    """A bit for each of a subsample's documents, and one for each of its words, some of which are masked."""
    phi, psi, weight = leaf([0.4, -0.6, 0.2], dtype), leaf([0.9, -1.1], dtype), leaf([1.4, -0.5], dtype)
    data = torch.tensor([[0.3, 1.1, -0.2], [-0.8, 0.5, 1.4]], dtype=dtype)  # [word, document]
    mask: Any = torch.tensor([[True, True, False], [True, False, True]])

    def model(x: Tensor) -> None:
        with pyro.plate("documents", 3, dim=-1, subsample_size=2) as index:
            topic = pyro.sample("topic", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
            with pyro.plate("words", 2, dim=-2):
                word = pyro.sample("word", dist.Bernoulli(logits=0.7 * topic - 0.2))
                with pyro.poutine.mask(mask=mask[:, index]):
                    pyro.sample("x", dist.Normal(weight[0] * word + weight[1] * topic, 0.7), obs=x[:, index])

    def guide(x: Tensor) -> None:
        with pyro.plate("documents", 3, dim=-1, subsample_size=2) as index:
            topic = pyro.sample("topic", dist.Bernoulli(logits=phi[index]))
            with pyro.plate("words", 2, dim=-2):
                pyro.sample("word", dist.Bernoulli(logits=psi[0] * x[:, index] + psi[1] * topic))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "weight": weight})


@program(CATEGORICAL, ONE_HOT)
def global_category(dtype: torch.dtype) -> Pair:
    """An integer drawn once for all particles, and an integer and a one-hot vector for the datum of a subsample."""
    phi, psi = leaf([0.4, -0.7, 0.2], dtype), leaf([[0.9, -0.5, 0.3], [-0.2, 0.6, -1.1]], dtype)
    chi, weight = leaf([[1.2, -0.7, 0.1], [-0.4, 0.8, 0.5], [0.3, 0.0, -0.9]], dtype), leaf([1.1, -0.6, 0.4], dtype)
    prior, data = torch.tensor([0.2, 0.3, 0.5], dtype=dtype), torch.tensor([1.3, -0.4], dtype=dtype)

    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Categorical(prior))
        with pyro.plate("data", 2, subsample_size=1) as index:
            a = pyro.sample("a", dist.Categorical(logits=prior * g.unsqueeze(-1)))
            b = pyro.sample("b", dist.OneHotCategorical(logits=prior - 0.4 * a.unsqueeze(-1)))
            pyro.sample("x", dist.Normal((weight * b).sum(-1) + 0.3 * g * a, 0.6), obs=x[index])

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Categorical(logits=phi))
        with pyro.plate("data", 2, subsample_size=1) as index:
            b = pyro.sample("b", dist.OneHotCategorical(logits=psi[index] + 0.4 * g.unsqueeze(-1) * phi))
            pyro.sample("a", dist.Categorical(logits=b @ chi))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "chi": chi, "weight": weight})


@program(CATEGORICAL, ONE_HOT)
def categories_in_documents(dtype: torch.dtype) -> Pair:
    """An integer for the document of a subsample, and a one-hot vector for each of its words, some of them masked."""
    phi = leaf([[0.4, -0.6, 0.2], [-0.8, 0.1, 0.7]], dtype)
    psi, weight = leaf([[0.9, -1.1, 0.3], [0.2, 0.8, -0.5], [-0.4, 0.6, 0.0]], dtype), leaf([1.4, -0.5, 0.6], dtype)
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=dtype)
    data = torch.tensor([[0.3, 1.1], [-0.8, 0.5]], dtype=dtype)  # [word, document]
    mask: Any = torch.tensor([[True, False], [True, True]])

    def model(x: Tensor) -> None:
        with pyro.plate("documents", 2, dim=-1, subsample_size=1) as index:
            topic = pyro.sample("topic", dist.Categorical(prior))
            with pyro.plate("words", 2, dim=-2):
                word = pyro.sample("word", dist.OneHotCategorical(logits=prior * topic.unsqueeze(-1)))
                with pyro.poutine.mask(mask=mask[:, index]):
                    pyro.sample("x", dist.Normal((weight * word).sum(-1) + 0.3 * topic, 0.7), obs=x[:, index])

    def guide(x: Tensor) -> None:
        with pyro.plate("documents", 2, dim=-1, subsample_size=1) as index:
            topic = pyro.sample("topic", dist.Categorical(logits=phi[index]))
            with pyro.plate("words", 2, dim=-2):
                pyro.sample("word", dist.OneHotCategorical(logits=psi[topic] + 0.5 * x[:, index].unsqueeze(-1)))

    return Pair(model, guide, (data,), {"phi": phi, "psi": psi, "weight": weight})

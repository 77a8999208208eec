"""Test programs about structures: each of them in a plate, masked, read by a later site; two of them, beside others.

A program of a structure lets it be read as programs do: an index looks tables up, a subset is a vector of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete.distributions.gibbs_matching import GibbsMatching
from pyro_discrete.distributions.k_subset import KSubset
from pyro_discrete.distributions.linear_chain import LinearChain
from pyro_discrete.distributions.permutations import k_hot, precedence
from pyro_discrete.distributions.plackett_luce import PlackettLuce
from pyro_discrete.distributions.sequential_matching import SequentialMatching
from pyro_discrete.distributions.structure import Structure
from pyro_discrete.distributions.trees import Arborescence, SpanningTree
from pyro_discrete.families import Need
from pyro_discrete.testing.small_programs.program import BERNOULLI, STRUCTURE, Pair, leaf, program

__all__ = [
    "arborescences",
    "chains",
    "gibbs_matchings",
    "lists",
    "rankings",
    "sequential_matchings",
    "spanning_trees",
    "structure_beside_a_gaussian",
    "structure_in_the_model_alone",
    "subsets",
    "two_structures",
]

ALL = frozenset(Need)
RACE = ALL - {Need.MARGINALS}
TREE = ALL - {Need.NOISE, Need.NOISE_GIVEN}


def logits(dtype: torch.dtype, *shape: int) -> Tensor:
    """A parameter of logits between -1.2 and 1.2, the same in every dtype."""
    number = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return (1.2 * (2.3 * number).sin()).reshape(shape).to(dtype).requires_grad_()


def symmetric(values: Tensor) -> Tensor:
    """The same seen from either node of an edge."""
    return (values + values.mT) / 2


def in_a_plate(
    make: Callable[[Tensor], Structure], read: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, *shape: int
) -> Pair:
    """Two structures in a plate, the second one's likelihood masked out; a bit that reads them in guide and model.

    - `make`: a structure of logits. `read(value, weights)`: one number `[...]` of a value, by learned weights.
    """
    phi, prior = logits(dtype, 2, *shape), logits(dtype, *shape).detach().neg()
    weights, level = leaf([0.8, -0.5, 0.3, 1.1], dtype), leaf(0.4, dtype)
    data = torch.tensor([1.3, -0.4], dtype=dtype)
    seen: Any = torch.tensor([True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", make(prior))
            number = read(z, weights)
            h = pyro.sample("h", dist.Bernoulli(logits=0.9 * number - 0.3))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(number + level * h, 0.8), obs=x)
            pyro.sample("y", dist.Normal(0.5 * number, 1.0), obs=0.7 * x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", make(phi))
            pyro.sample("h", dist.Bernoulli(logits=0.6 * read(z, weights.detach().flip(0))))

    return Pair(model, guide, (data,), {"phi": phi, "weights": weights, "level": level})


def by_place(value: Tensor, weights: Tensor) -> Tensor:
    """What the first number of a value and the second one look up, and their product."""
    found = weights[value]
    return found[..., 0] - 0.7 * found[..., 1] + found[..., 0] * found[..., 1]


@program(STRUCTURE, BERNOULLI, meets=RACE)
def rankings(dtype: torch.dtype) -> Pair:
    """Rankings of three items, read by the places and by who is before whom."""

    def read(order: Tensor, weights: Tensor) -> Tensor:
        before = precedence(order).to(dtype)
        return by_place(order, weights) + weights[3] * before[..., 0, 1] * before[..., 2, 1]

    return in_a_plate(PlackettLuce, read, dtype, 3)


@program(STRUCTURE, BERNOULLI, meets=RACE)
def lists(dtype: torch.dtype) -> Pair:
    """The first two of four items, read as a list and as a set."""

    def read(order: Tensor, weights: Tensor) -> Tensor:
        chosen = k_hot(order, 4).to(dtype)
        return by_place(order, weights) + chosen[..., 1] * chosen[..., 3]

    return in_a_plate(lambda values: PlackettLuce(values, 2), read, dtype, 4)


@program(STRUCTURE, BERNOULLI)
def subsets(dtype: torch.dtype) -> Pair:
    """Two of four items."""

    def read(z: Tensor, weights: Tensor) -> Tensor:
        return (z * weights).sum(-1).square() - z[..., 0] * z[..., 2]

    return in_a_plate(lambda values: KSubset(values, 2), read, dtype, 4)


@program(STRUCTURE, BERNOULLI, meets=RACE)
def sequential_matchings(dtype: torch.dtype) -> Pair:
    """Matchings of three rows, a row at a time."""
    return in_a_plate(SequentialMatching, by_place, dtype, 3, 3)


@program(STRUCTURE, BERNOULLI)
def gibbs_matchings(dtype: torch.dtype) -> Pair:
    """Matchings of three rows."""
    return in_a_plate(GibbsMatching, by_place, dtype, 3, 3)


@program(STRUCTURE, BERNOULLI)
def chains(dtype: torch.dtype) -> Pair:
    """Paths of three places through two states."""
    return in_a_plate(LinearChain, by_place, dtype, 3, 2, 2)


@program(STRUCTURE, BERNOULLI, meets=TREE)
def arborescences(dtype: torch.dtype) -> Pair:
    """Trees on three nodes, read by the parents of two."""
    return in_a_plate(Arborescence, by_place, dtype, 3, 3)


@program(STRUCTURE, BERNOULLI, meets=TREE)
def spanning_trees(dtype: torch.dtype) -> Pair:
    """Undirected trees on three nodes."""
    return in_a_plate(lambda values: SpanningTree(symmetric(values)), by_place, dtype, 3, 3)


@program(STRUCTURE, meets=RACE)
def two_structures(dtype: torch.dtype) -> Pair:
    """A ranking, and a subset whose logits depend on who is first."""
    phi, chi, table = logits(dtype, 3), logits(dtype, 3, 4), leaf([0.6, -1.0, 0.4], dtype)
    target = torch.tensor(0.9, dtype=dtype)

    def model() -> None:
        order = pyro.sample("order", PlackettLuce(torch.zeros(3, dtype=dtype)))
        z = pyro.sample("z", KSubset(table[order[..., :1]] * torch.arange(4.0, dtype=dtype), 2))
        pyro.sample("x", dist.Normal(table[order[..., 1]] * z[..., 0] + z[..., 3] - z[..., 1], 0.7), obs=target)

    def guide() -> None:
        order = pyro.sample("order", PlackettLuce(phi))
        pyro.sample("z", KSubset(chi[order[..., 0]], 2))

    return Pair(model, guide, (), {"phi": phi, "chi": chi, "table": table})


@program(STRUCTURE)
def structure_beside_a_gaussian(dtype: torch.dtype) -> Pair:
    """A subset that a Gaussian of guide and model depends on."""
    phi, location = logits(dtype, 4), leaf([0.3, -0.4, 0.8, 0.1], dtype)
    target = torch.tensor(1.1, dtype=dtype)

    def model() -> None:
        z = pyro.sample("z", KSubset(torch.zeros(4, dtype=dtype), 2))
        w = pyro.sample("w", dist.Normal(0.5 * z[..., 0], 1.0))
        pyro.sample("x", dist.Normal(w * (1 + z[..., 1]) + z[..., 2], 0.9), obs=target)

    def guide() -> None:
        z = pyro.sample("z", KSubset(phi, 2))
        pyro.sample("w", dist.Normal((z * location).sum(-1), 0.6))

    return Pair(model, guide, (), {"phi": phi, "location": location})


@program(BERNOULLI)
def structure_in_the_model_alone(dtype: torch.dtype) -> Pair:
    """A ranking that no guide draws: it is summed out, below a bit that is drawn."""
    phi, skill, table = leaf(0.4, dtype), logits(dtype, 2, 3), leaf([-0.8, 0.2, 1.1], dtype)
    target = torch.tensor(0.6, dtype=dtype)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
        share = b.unsqueeze(-1)
        order = pyro.sample("order", PlackettLuce(share * skill[0] + (1 - share) * skill[1]))
        pyro.sample("x", dist.Normal(table[order[..., 0]] * (1 + b), 0.7), obs=target)

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=phi))

    return Pair(model, guide, (), {"phi": phi, "skill": skill, "table": table})

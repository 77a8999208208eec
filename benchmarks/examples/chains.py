"""The hidden Markov models 0 to 6 of Pyro's example, rewritten after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from benchmarks.examples.example import PARALLEL, Example, at_means, example, joined

__all__ = ["sequences"]

TONES, STATES = 5, 3


def sequences() -> tuple[Tensor, Tensor]:
    """Music-like data: `[sequences, length, tones]` and lengths."""
    return (torch.rand(4, 4, TONES) > 0.6).to(torch.get_default_dtype()), torch.tensor([4, 2, 3, 4])


def taken(table: Tensor, *index: Any) -> Any:
    """Elements of a table, dims of the indices broadcast."""
    table_of: Any = Vindex(table)
    return table_of[index]


def seen(t: int, lengths: Tensor) -> Any:
    """Which sequences go on at this time."""
    return (t < lengths).unsqueeze(-1)


def hmm(model: Callable[..., Any], nesting: int = 2) -> Example:
    """A hidden Markov model with a point for all its probabilities."""
    return Example(model, at_means(model, "probs_"), sequences(), nesting)


def transitions(name: str, *sizes: int) -> Tensor:
    """Rows of probabilities that stay."""
    prior = (0.9 * torch.eye(sizes[-1]) + 0.1).expand(*sizes[:-1], sizes[-1]) if len(sizes) > 1 else torch.ones(sizes)
    return pyro.sample(name, dist.Dirichlet(prior).to_event(len(sizes) - 1))


def tones_of(name: str, *sizes: int) -> Tensor:
    """Probabilities of tones."""
    return pyro.sample(name, dist.Beta(0.1, 0.9).expand([*sizes, TONES]).to_event(len(sizes) + 1))


@example
def hmm_0() -> Example:
    """Sequence by sequence."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for i in map(int, pyro.plate("sequences", 2)):
            x: Any = 0
            for t in pyro.markov(range(int(lengths[i]))):
                x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                with tones:
                    pyro.sample(f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[i, t])

    return hmm(model, 1)


@example
def hmm_1() -> Example:
    """All sequences at once, masked."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x: Any = 0
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=seen(t, lengths)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[:, t])

    return hmm(model)


@example
def hmm_2() -> Example:
    """Tones read the tones before."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES, 2)
        tones_plate = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x: Any = 0
            y: Any = 0
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=seen(t, lengths)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    with tones_plate as tones:
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(taken(probs_y, x, y, tones)), obs=data[:, t]).long()

    return hmm(model)


def two_chains(joined: bool) -> Example:
    """Factorial chains w and x; x reads w where they are joined."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_w = transitions("probs_w", 2, 2)
        probs_x = transitions("probs_x", 2, 2, 2) if joined else transitions("probs_x", 2, 2)
        probs_y = tones_of("probs_y", 2, 2)
        tones_plate = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            w, x = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=seen(t, lengths)):
                    w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=PARALLEL)
                    row = taken(probs_x, w, x) if joined else probs_x[x]
                    x = pyro.sample(f"x_{t}", dist.Categorical(row), infer=PARALLEL)
                    with tones_plate as tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(taken(probs_y, w, x, tones)), obs=data[:, t])

    return hmm(model)


@example
def hmm_3() -> Example:
    """Two chains beside each other."""
    return two_chains(joined=False)


@example
def hmm_4() -> Example:
    """Two chains, of which one reads the other."""
    return two_chains(joined=True)


@example
def hmm_5() -> Example:
    """Tones by a network of the state and the tones before."""
    network = nn.Sequential(nn.Linear(STATES + TONES, 6), nn.ReLU(), nn.Linear(6, TONES))

    def model(data: Tensor, lengths: Tensor) -> None:
        pyro.module("network", network)
        probs_x = transitions("probs_x", STATES, STATES)
        with pyro.plate("sequences", len(data), dim=-1):
            x: Any = 0
            y = torch.zeros(len(data), TONES)
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=seen(t, lengths).squeeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    state = nn.functional.one_hot(x, STATES).to(y.dtype)
                    both = torch.cat(joined(state, y), -1)
                    fn = dist.Bernoulli(logits=network(both)).to_event(1)
                    y = pyro.sample(f"y_{t}", fn, obs=data[:, t])

    return hmm(model, 1)


@example
def hmm_6() -> Example:
    """Of second order, with a history of two."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", 2, 2, 2), tones_of("probs_y", 2)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x, before = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(data.shape[1]), history=2):
                with poutine.mask(mask=seen(t, lengths)):
                    row = taken(probs_x, before, x)
                    before, x = x, pyro.sample(f"x_{t}", dist.Categorical(row), infer=PARALLEL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[:, t])

    return hmm(model)

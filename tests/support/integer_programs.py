"""Programs with integer latents in the usual Pyro way, and the same ones written by hand with one-hot vectors."""

from __future__ import annotations

from functools import cache

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

torch.manual_seed(0)
REAL = torch.float64
POINTS = torch.tensor([-2.1, -1.7, 0.2, 1.9, 2.3], dtype=REAL)
ANSWERS = torch.tensor([[0, 1, 1, 2], [1, 1, 0, 0], [0, 0, 1, 2]])
SERIES = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]], dtype=REAL)


@cache
def start(shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def real(name, *shape, seed=1):
    return pyro.param(name, lambda: start(shape, seed).clone())


def simplex(name, *shape):
    return pyro.param(name, lambda: start(shape, 2).softmax(-1), constraint=constraints.simplex)


def mixture(x=POINTS):
    locs, weights = real("locs", 3), simplex("weights", 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 0.7), obs=x)


def mixture_guide(x=POINTS):
    logits = real("logits", len(x), 3, seed=3)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def mixture_by_hand(x=POINTS):
    locs, weights = real("locs", 3), simplex("weights", 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(weights))
        pyro.sample("x", dist.Normal(z @ locs, 0.7), obs=x)


def mixture_guide_by_hand(x=POINTS):
    logits = real("logits", len(x), 3, seed=3)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=logits))


def classes(x=ANSWERS):
    weights, answers = simplex("weights", 2), simplex("answers", 2, 4, 3)
    with pyro.plate("people", len(x), dim=-2):
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("items", 4, dim=-1) as item:
            pyro.sample("x", dist.Categorical(Vindex(answers)[z, item]), obs=x)


def classes_guide(x=ANSWERS):
    logits = real("logits", len(x), 1, 2, seed=3)
    with pyro.plate("people", len(x), dim=-2):
        pyro.sample("z", dist.Categorical(logits=logits))


def classes_by_hand(x=ANSWERS):
    weights, answers = simplex("weights", 2), simplex("answers", 2, 4, 3)
    with pyro.plate("people", len(x), dim=-2):
        z = pyro.sample("z", dist.OneHotCategorical(weights))
        with pyro.plate("items", 4, dim=-1):
            pyro.sample("x", dist.Categorical(torch.einsum("...nok,kia->...nia", z, answers)), obs=x)


def classes_guide_by_hand(x=ANSWERS):
    logits = real("logits", len(x), 1, 2, seed=3)
    with pyro.plate("people", len(x), dim=-2):
        pyro.sample("z", dist.OneHotCategorical(logits=logits))


def chain(x=SERIES):
    moves, tones = simplex("moves", 3, 3), simplex("tones", 3, 2, 2)
    with pyro.plate("series", len(x), dim=-2):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            with pyro.plate(f"tones_{t}", 2, dim=-1):
                pyro.sample(f"x_{t}", dist.Bernoulli(tones[z.squeeze(-1)][..., 0]), obs=x[:, t])


def chain_guide(x=SERIES):
    logits, follow = real("logits", len(x), 3, 1, 3, seed=3), real("follow", 3, 3, seed=4)
    with pyro.plate("series", len(x), dim=-2):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            here = logits[:, t] if z is None else logits[:, t] + follow[z]
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=here))


def chain_by_hand(x=SERIES):
    moves, tones = simplex("moves", 3, 3), simplex("tones", 3, 2, 2)
    with pyro.plate("series", len(x), dim=-2):
        here = moves[0]
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.OneHotCategorical(here))
            here = z @ moves
            with pyro.plate(f"tones_{t}", 2, dim=-1):
                pyro.sample(f"x_{t}", dist.Bernoulli(z.squeeze(-2) @ tones[..., 0]), obs=x[:, t])


def chain_guide_by_hand(x=SERIES):
    logits, follow = real("logits", len(x), 3, 1, 3, seed=3), real("follow", 3, 3, seed=4)
    with pyro.plate("series", len(x), dim=-2):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            here = logits[:, t] if z is None else logits[:, t] + z @ follow
            z = pyro.sample(f"z_{t}", dist.OneHotCategorical(logits=here))


PROGRAMS = {
    "mixture": (mixture, mixture_guide, mixture_by_hand, mixture_guide_by_hand),
    "classes": (classes, classes_guide, classes_by_hand, classes_guide_by_hand),
    "chain": (chain, chain_guide, chain_by_hand, chain_guide_by_hand),
}

"""What modules keep (averages, counts) after a step is what one run of guide and model leaves, by every way."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO
from pyro_discrete.planning.plan import (
    Chunked,
    ChunkedBound,
    Jointly,
    OneByOne,
    Parallel,
    Sequential,
    Vectorised,
)

X = torch.tensor([[0.4, -1.3], [2.1, 0.3], [-0.5, 0.8]])


class Counts(nn.Module):
    """Counts its calls: in a buffer in place, in a buffer that it replaces, and in a number; or in the first alone."""

    def __init__(self, python=True):
        super().__init__()
        self.python = python
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(()))
        self.number = 0

    def forward(self, x):
        self.calls += 1
        if self.python:
            self.seen = self.seen + 1
            self.number += 1
        return x


class Held:
    """Programs as methods of an object that is no module: what they call is found as it is called."""

    def __init__(self, read, continuous=False, alone=False, python=True):
        self.read, self.continuous, self.alone = read, continuous, alone
        self.parts = {name: [Counts(python), nn.BatchNorm1d(2)] for name in ("guide", "model")}
        self.encoder = nn.Linear(2, 1)

    def ran(self, name):
        x = X
        for part in self.parts[name]:
            x = part(x)
        return x

    def model(self):
        self.ran("model")
        w = pyro.sample("w", dist.Normal(0.0, 1.0)) if self.continuous else 0.0
        m = pyro.sample("m", dist.Bernoulli(0.4)) if self.alone else 0.0
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(self.read(z, m) + w, 1.0), obs=X[:, 0])

    def guide(self):
        h = self.encoder(self.ran("guide"))
        if self.continuous:
            pyro.sample("w", dist.Normal(h.mean(), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=h.squeeze(-1)))


def plainly(z, m):
    return z + m


def without_rows(z, m):
    return z.view(3)


def looked_into_alone(z, m):
    return z + float(m)


def joined(z, m):
    return z + z.roll(1, -1)


def joined_without_rows(z, m):
    return (z + z.roll(1, -1)).view(3)


WAYS = {
    "vectorised": (lambda c: TraceELBO("rloo", num_particles=3, compile=c), plainly, {}, Vectorised),
    "further rows": (lambda c: TraceELBO("disarm", compile=c), plainly, {}, Vectorised),
    "one row": (lambda c: TraceELBO("reinforce", compile=c), plainly, {}, Sequential),
    "sequential": (
        lambda c: TraceELBO("rloo", num_particles=3, vectorize_particles=False, compile=c),
        plainly,
        {},
        Sequential,
    ),
    "sequential rows": (
        lambda c: TraceELBO("disarm", num_particles=2, vectorize_particles=False, compile=c),
        plainly,
        {},
        Sequential,
    ),
    "no rows": (lambda c: TraceELBO("rloo", num_particles=3, compile=c), without_rows, {}, Sequential),
    "chunks": (lambda c: TraceELBO("rloo", num_particles=4, row_chunk=2), plainly, {}, Chunked),
    "bound": (lambda c: TraceIWELBO("vimco", num_particles=3, compile=c), plainly, {}, Vectorised),
    "sequential bound": (
        lambda c: TraceIWELBO("vimco", num_particles=3, vectorize_particles=False, compile=c),
        plainly,
        {},
        Sequential,
    ),
    "bound in chunks": (lambda c: TraceIWELBO("vimco", num_particles=4, row_chunk=2), plainly, {}, ChunkedBound),
    "parallel": (lambda c: TraceELBO("enumerate", compile=c), plainly, {}, Parallel),
    "particles beside": (
        lambda c: TraceELBO("enumerate", num_particles=3, compile=c),
        plainly,
        {"continuous": True},
        Parallel,
    ),
    "particles in turn": (
        lambda c: TraceELBO("enumerate", num_particles=3, vectorize_particles=False, compile=c),
        plainly,
        {"continuous": True},
        Parallel,
    ),
    "one by one": (lambda c: TraceELBO("enumerate", compile=c), without_rows, {}, OneByOne),
    "jointly": (lambda c: TraceELBO("enumerate", compile=c), joined, {}, Jointly),
    "jointly in turn": (lambda c: TraceELBO("enumerate", compile=c), joined_without_rows, {}, Jointly),
    "sites of the model alone": (
        lambda c: TraceELBO("reinforce", compile=c),
        looked_into_alone,
        {"alone": True},
        Sequential,
    ),
}


def check_state(held, steps):
    for name, (counts, norm) in held.parts.items():
        assert int(counts.calls) == steps, name
        if counts.python:
            assert float(counts.seen) == counts.number == steps, name
        assert int(norm.num_batches_tracked) == steps, name
        torch.testing.assert_close(norm.running_mean, X.mean(0) * (1 - 0.9**steps))


@pytest.mark.parametrize("way", WAYS)
def test_a_step_leaves_what_one_run_leaves(way):
    """From the first step on, and so does a look at the loss. (Sums element by element need a program that is known not
    to change what it reads.)"""
    make, read, settings, kind = WAYS[way]
    held, elbo = Held(read, **settings), make(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, 5):
            elbo.loss_and_grads(held.model, held.guide)
            check_state(held, step)
        assert isinstance(elbo.plan.way, kind)
        elbo.loss(held.model, held.guide)
        check_state(held, 5)


@pytest.mark.parametrize("way", [way for way in WAYS if "chunks" not in way])
def test_captured_steps_leave_it_too(way):
    """In the eager step, in the one that is captured, in those of the graph, and in those that are compared."""
    make, read, settings, kind = WAYS[way]
    held, elbo = Held(read, python=False, **settings), make("graph")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, 8):
            elbo.loss_and_grads(held.model, held.guide)
            check_state(held, step)
        assert isinstance(elbo.plan.way, kind)


def test_the_plan_says_how_often_programs_run():
    said = []
    for way in ("vectorised", "sequential rows", "sites of the model alone"):
        make, read, settings, _ = WAYS[way]
        held, elbo = Held(read, **settings), make(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            elbo.loss_and_grads(held.model, held.guide)
        said.append(next(line for line in str(elbo.plan).splitlines() if "a step runs" in line))
    ends = "; modules (averages, counts) end as after one run"
    assert said == [
        "a step runs the guide and the model once",
        "a step runs the guide 4 times and the model 4 times" + ends,
        "a step runs the guide 1 time and the model 2 times" + ends,
    ]


def test_a_step_that_is_planned_anew_counts_once():
    """New plate dims, new sites, and elements that share terms from some step on; new arguments are tried before."""
    counts = {"guide": Counts(), "model": Counts()}

    def model(deep, more, shared):
        counts["model"](X)
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            if more:
                pyro.sample("w", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:, 0])
            if deep:
                with pyro.plate("deep", 2, dim=-2):
                    pyro.sample("y", dist.Normal(z, 1.0), obs=X[:, 0].expand(2, 3))
        if shared:
            pyro.sample("all", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=X[0, 0])

    def guide(deep, more, shared):
        counts["guide"](X)
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))))
            if more:
                pyro.sample("w", dist.Bernoulli(0.3))

    elbo = TraceELBO({"z": "indecater", "*": "reinforce"})
    flags = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 0, 1)]
    for step, given in enumerate(flags, 1):
        elbo.loss_and_grads(model, guide, *map(bool, given))
        for each in counts.values():
            assert int(each.calls) == float(each.seen) == each.number == step


class Reads(nn.Module):
    """A program that depends on the number of its runs: rows of one step must see the same one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.logit = nn.Parameter(torch.tensor(0.3))
        self.met = []

    def model(self):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def guide(self):
        self.met.append(float(self.calls))
        self.calls += 1
        pyro.sample("z", dist.Bernoulli(logits=self.logit * (1 + self.calls)))


def test_every_row_of_a_step_starts_from_the_same_state():
    pair = Reads()
    elbo = TraceELBO("disarm", num_particles=2, vectorize_particles=False)
    for step in range(3):
        pair.met.clear()
        elbo.loss_and_grads(pair.model, pair.guide)
        assert pair.met[-4:] == [float(step)] * 4
        assert float(pair.calls) == step + 1


def test_queries_leave_it_as_it_was():
    held = Held(plainly)
    TraceELBO("reinforce").loss_and_grads(held.model, held.guide)
    posterior = DiscretePosterior(held.model, held.guide)
    posterior.marginals()
    posterior.most_probable()
    check_state(held, 1)

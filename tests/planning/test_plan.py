"""What a plan says and is: each site's choice by name, and nothing in it that a step writes to."""

from __future__ import annotations

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import NVIL, TraceELBO, TraceIWELBO
from pyro_discrete.inspection import wiring
from pyro_discrete.inspection.dependencies import find_dependencies
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair

DATA = torch.tensor([0.3, -1.2, 0.8])


def model(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.4))
        w = pyro.sample("w", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(y + z + w, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.2))))


@pytest.mark.parametrize(
    ("elbo", "z"),
    [
        (TraceELBO({"z": "rloo"}, num_particles=2), "rloo"),
        (TraceELBO({"z": NVIL(variance_normalisation=False)}), "nvil"),
        (TraceELBO("enumerate"), "enumerate"),
        (TraceIWELBO("vimco", num_particles=3), "vimco"),
    ],
    ids=["rloo", "nvil", "enumerate", "vimco"],
)
def test_choices_name_what_each_site_got(elbo, z):
    elbo.loss(model, guide, DATA)
    assert elbo.plan.choices == {"y": "pathwise", "z": z, "w": "enumerate"}


WAYS = {
    "vectorised": TraceELBO("rloo", num_particles=2),
    "sequential": TraceELBO("rloo", num_particles=2, vectorize_particles=False),
    "enumerated": TraceELBO("enumerate"),
    "chunks": TraceELBO("rloo", num_particles=4, row_chunk=2),
    "captured": TraceELBO("nvil", compile="graph"),
    "relaxed": TraceELBO("gumbel_softmax"),
}


def contents(plan: Plan) -> dict[str, str]:
    """All that a plan says, but for what steps have met."""
    return {f.name: repr(getattr(plan, f.name)) for f in dataclasses.fields(plan) if f.name not in ("met", "given")}


@pytest.mark.parametrize("name", WAYS)
def test_no_step_writes_to_its_plan(name):
    elbo = WAYS[name]
    elbo.loss(model, guide, DATA)
    plan = elbo.plan
    before, given = contents(plan), dict(plan.given)
    for _ in range(3):
        elbo.loss_and_grads(model, guide, DATA)
        elbo.loss(model, guide, DATA)
    assert elbo.plan is plan
    assert contents(plan) == before
    assert plan.given == given
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.way = None


def test_alike_sites_share_a_line():
    """A chain of 30 with two kinds of site is two lines; three alike sites stay three, and so do those that differ."""

    def chain(length):
        z = 0
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(torch.tensor([0.2, 0.6])[z]))
            pyro.sample(f"w{t}", dist.Categorical(torch.ones(3)))
            z = z.long()

    def listed(length):
        elbo = TraceELBO("enumerate")
        elbo.loss(chain, lambda length: None, length)
        return str(elbo.plan).splitlines()

    long, short = listed(30), listed(3)
    assert [line.partition("  ")[0] for line in long[1:3]] == ["z0 ... z29 (30)", "w0 ... w29 (30)"]
    assert [line.partition(" ")[0] for line in short[1:7]] == ["z0", "w0", "z1", "w1", "z2", "w2"]
    assert len(long) == len(short) - 4


@pytest.mark.parametrize("reads", ["z", "nothing", "a counter"])
def test_what_depends_on_all_draws_is_neither_searched_nor_watched(monkeypatch, reads):
    """Every term is seen to move with the only draw. Not so where one does not, or the state cannot be watched."""
    searched, calls = [], [0]

    def found(*given):
        searched.append(given)
        return find_dependencies(*given)

    monkeypatch.setattr(wiring, "find_dependencies", found)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)))

    def model():
        if reads == "a counter":
            calls[0] += 1
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))
            pyro.sample("x", dist.Normal(torch.zeros(3) if reads == "nothing" else z, 1.0))

    observed = pyro.condition(model, {"x": torch.zeros(3)})
    elbo = TraceELBO("rloo", num_particles=2)
    elbo.loss_and_grads(observed, guide)
    assert bool(searched) is (reads != "z")
    assert (elbo.plan.whole is not None) is (reads == "z")
    if reads == "z":
        known = elbo.plan.dependencies(Pair(observed, guide, (), {}))
        assert known.known
        assert all(known.influences("z", term) for term in known.terms)

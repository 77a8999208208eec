"""A pair's graph is the one that its programs write down: arrows by hand, for each way in which a draw can be read."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import find_dependencies, terms_that_move
from pyro_discrete.inspection.pair_graph import PairGraph, pair_graph
from pyro_discrete.programs.pair import KeepSubsamples, Pair, trace_pair
from pyro_discrete.programs.sites import family_of, latent_sites
from pyro_discrete.testing.generated_programs.random_pairs import random_pair
from pyro_discrete.testing.generated_programs.source import build

TABLE = torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def nothing():
    pass


def graph(model, guide=nothing, *args):
    return pair_graph(Pair(model, guide, args, {}))


def arrows(text: str) -> frozenset[tuple[str, str]]:
    return frozenset((start, end) for start, _, end in (arrow.partition(">") for arrow in text.split()))


def skip():
    """A chain with a link that passes one over: what a closure of ancestors would not show."""
    a = pyro.sample("a", dist.Bernoulli(0.5))
    b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
    c = pyro.sample("c", dist.Categorical(TABLE[b.long()]))
    pyro.sample("x", dist.Normal(c + a, 1.0), obs=torch.tensor(0.3))


def without_skip():
    a = pyro.sample("a", dist.Bernoulli(0.5))
    b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
    c = pyro.sample("c", dist.Categorical(TABLE[b.long()]))
    pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(0.3))


def indexed():
    """By whole numbers without dims: alone, beside a slice, twice; of one table."""
    a = pyro.sample("a", dist.Categorical(torch.ones(2)))
    b = pyro.sample("b", dist.Categorical(TABLE[a]))
    c = pyro.sample("c", dist.Categorical(TABLE[b, :]))
    pyro.sample("x", dist.Bernoulli(TABLE[a, c]), obs=torch.tensor(1.0))
    pyro.sample("y", dist.Bernoulli(TABLE[0, 1]), obs=torch.tensor(1.0))


def computed():
    """Through a deterministic site, which is no box, and a scale by a draw."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.deterministic("twice", 2 * a)
    z = pyro.sample("z", dist.Bernoulli(logits=b))
    with pyro.poutine.scale(scale=1 + z):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
    pyro.factor("f", z + a)


def plated():
    with pyro.plate("users", 4, dim=-2):
        u = pyro.sample("u", dist.Bernoulli(0.3))
        with pyro.plate("items", 3, dim=-1):
            pyro.sample("x", dist.Normal(u, 1.0), obs=torch.zeros(4, 3))


CASES = {
    "a link that passes one over": (skip, "a>b b>c c>x a>x"),
    "none": (without_skip, "a>b b>c c>x"),
    "single indices": (indexed, "a>b b>c a>x c>x"),
    "computed": (computed, "a>z z>x z>f a>f"),
    "plates": (plated, "u>x"),
}


@pytest.mark.parametrize("name", CASES)
def test_arrows_are_those_of_the_program(name: str) -> None:
    model, expected = CASES[name]
    found = graph(model)
    assert (found.model, found.guide, found.unknown) == (arrows(expected), frozenset(), "")


def test_guide_and_model_have_arrows_of_their_own() -> None:
    def model():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(0.3))

    def guide():
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"is_auxiliary": True})
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * c))
        pyro.sample("a", dist.Bernoulli(0.2 + 0.5 * b))

    found = graph(model, guide)
    assert found.model == arrows("a>b b>x")
    assert found.guide == arrows("c>b b>a")
    assert [(n.name, n.where, n.observed) for n in found.nodes] == [
        ("a", "both", False), ("b", "both", False), ("x", "model", True), ("c", "guide", False),
    ]  # fmt: skip


def test_nodes_say_what_is_drawn_and_where() -> None:
    def model(x):
        with pyro.plate("data", 10, subsample_size=2) as index:
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample("w", dist.OneHotCategorical(torch.ones(4)))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[index])
        pyro.factor("f", torch.tensor(1.0))

    nodes = graph(model, lambda x: None, torch.zeros(10)).nodes
    plates = (("data", "2 of 10"),)
    assert [(n.name, n.law, n.plates) for n in nodes] == [
        ("z", "3 x Bernoulli", plates),
        ("w", "OneHotCategorical", plates),
        ("x", "Normal", plates),
        ("f", "factor", ()),
    ]


def test_what_python_reads_is_found_by_other_values_and_said() -> None:
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        w = pyro.sample("w", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(1.0 if z.item() else -1.0, 1.0), obs=torch.tensor(0.3))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.3))

    found = graph(model)
    assert found.model == arrows("z>x w>y")
    assert "Python reads a tensor's value (.item(), if or an index) at test_pair_graph.py:" in found.unknown


def test_a_distribution_that_looks_at_its_values_to_refuse_them_hides_nothing() -> None:
    """Made before the run, with validation, as a `PyroSample` is."""
    prior = dist.Normal(0.0, 1.0, validate_args=True)
    likelihood = dist.Bernoulli(0.5, validate_args=True).expand([2]).to_event(1)

    def model():
        a = pyro.sample("a", prior)
        pyro.sample("w", likelihood)
        pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(0.3))

    found = graph(model)
    assert (found.model, found.unknown) == (arrows("a>x"), "")
    assert find_dependencies(Pair(model, nothing, (), {})).known


def test_a_program_that_does_not_run_on_single_values_has_no_arrows_and_says_so() -> None:
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z.dim() == 0:
            raise ValueError("enumerate me")

    assert graph(model) == PairGraph(unknown="it does not run on single values (ValueError: enumerate me)")


def test_everything_stays_as_it_was() -> None:
    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.2))))

    norm = torch.nn.BatchNorm1d(1)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(norm(torch.randn(4, 1)).sum() + z, 1.0), obs=torch.tensor(0.3))

    pyro.clear_param_store()
    guide()
    before, mean = torch.get_rng_state(), norm.running_mean.clone()
    graph(model, guide)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(norm.running_mean, mean)
    assert pyro.param("a").grad is None


def test_a_chain_of_300_costs_little_and_has_each_arrow() -> None:
    def model():
        z = 0
        for t in pyro.markov(range(300)):
            z = pyro.sample(f"z_{t}", dist.Categorical(TABLE[z]))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.1))

    expected = {(f"z_{t}", f"x_{t}") for t in range(300)} | {(f"z_{t}", f"z_{t + 1}") for t in range(299)}
    assert graph(model).model == expected


def test_what_moves_with_a_value_has_an_arrow_in_generated_programs() -> None:
    """Other values of each site, the others held: whatever changes has an arrow, or some are said to be missing."""
    complete = 0
    for seed in range(40):
        torch.set_default_dtype(torch.float64)
        pyro.clear_param_store()
        made = build(random_pair(seed))
        pair = Pair(made.model, made.guide, made.args, {})
        found = pair_graph(pair)
        if found.unknown:
            continue
        subsamples = KeepSubsamples()
        guide_trace, model_trace = trace_pair(pair, subsamples)
        drawn = latent_sites(model_trace) | latent_sites(guide_trace)
        values = {n: m["value"] for n, m in drawn.items()}
        discrete = {n: m for n, m in drawn.items() if family_of(m["fn"]) not in (None, Family.CONTINUOUS)}
        moved = terms_that_move(pair, subsamples, values, discrete)
        shown = {node.name for node in found.nodes}
        for start, terms in moved.items():
            for side, end in terms:
                arrows = found.model if side == "model" else found.guide
                assert start == end or end not in shown or (start, end) in arrows, (seed, start, side, end)
        complete += bool(moved)
    assert complete >= 10

"""Structures at sizes and logits where the obvious formulas lose digits, and beside Pyro's own classes."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete.distributions import (
    Arborescence,
    GibbsMatching,
    GibbsStructure,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    SpanningTree,
    Structure,
    linear_chain,
)
from pyro_discrete.distributions.trees import sum_by_elimination
from pyro_discrete.draws.gumbel import log_prob_ordered
from pyro_discrete.draws.log_space import log_sum_exp

F64 = torch.float64


def test_subsets_beside_elementary_symmetric_polynomials() -> None:
    """Of the odds, item by item, at sizes that are no powers of two and k from one to all."""
    torch.manual_seed(0)
    for n, k in [(7, 1), (7, 6), (7, 7), (13, 5), (33, 17)]:
        logits = torch.randn(n, dtype=F64)
        sums = [1.0] + [0.0] * k
        for odds in logits.exp().tolist():
            sums = [1.0, *(b + odds * a for a, b in itertools.pairwise(sums))]
        d = KSubset(logits, k)
        assert abs(d.log_partition.item() - math.log(sums[k])) < 1e-10
        torch.testing.assert_close(d.marginals().sum(), torch.tensor(float(k), dtype=F64))
        torch.testing.assert_close(d.marginals(), GibbsStructure.marginals(d))
        assert (d.sample((50,)).sum(-1) == k).all()


def test_large_subsets_in_single_precision() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(1000)
    d, exact = KSubset(logits, 100), KSubset(logits.double(), 100)
    value = d.sample((20,))
    torch.testing.assert_close(d.log_prob(value).double(), exact.log_prob(value.double()), rtol=0, atol=1e-3)
    torch.testing.assert_close(d.marginals().double(), exact.marginals(), rtol=0, atol=1e-5)
    assert (d.read(d.perturb_given(value)) == value).all(-1).float().mean() > 0.9  # ties; the draw is what counts


def test_long_rankings() -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(1000)
    d = PlackettLuce(logits)
    order = d.sample((10,))
    torch.testing.assert_close(d.log_prob(order), log_prob_ordered(logits, order), rtol=1e-5, atol=1e-2)
    exact = PlackettLuce(logits.double()).log_prob(order)
    torch.testing.assert_close(d.log_prob(order).double(), exact, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("states", [2, 3, 5])
@pytest.mark.parametrize("length", [2, 3, 4, 7, 16, 33])
def test_chains_in_pairs_are_those_link_by_link(states: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(length)
    logits = 2 * torch.randn(2, length, states, states, dtype=F64)
    logits[0, 1, 0, 1] = -math.inf
    logits.requires_grad_()

    def found() -> tuple[Tensor, ...]:
        d = LinearChain(logits)
        slope = torch.autograd.grad(d.entropy().sum(), logits)[0]
        return d.log_partition.detach(), d.marginals().detach(), slope

    in_pairs = found()
    monkeypatch.setattr(linear_chain, "SCAN_TABLE", 0)
    for one, other in zip(in_pairs, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    forward = logits.detach()[:, 0, 0]
    for t in range(1, length):
        forward = (forward.unsqueeze(-1) + logits.detach()[:, t]).logsumexp(-2)
    torch.testing.assert_close(in_pairs[0], forward.logsumexp(-1), rtol=1e-10, atol=1e-10)


def test_long_chains_keep_their_digits_in_single_precision() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(10_000, 4, 4)
    d, exact = LinearChain(logits), LinearChain(logits.double())
    value = d.sample()
    assert abs(d.log_prob(value).item() - exact.log_prob(value).item()) < 0.05  # of some -8,000
    assert abs(d.log_partition.item() / exact.log_partition.item() - 1) < 1e-6
    torch.testing.assert_close(d.marginals().double(), exact.marginals(), rtol=0, atol=2e-6)
    assert (d.read(d.perturb_given(value)) == value).all()
    assert d.mode.shape == (10_000,)
    assert exact.log_prob(d.mode) >= exact.log_prob(value)


def test_chain_from_potentials_is_a_hidden_markov_model() -> None:
    torch.manual_seed(0)
    initial, links = torch.randn(2, 3, dtype=F64), torch.randn(4, 3, 3, dtype=F64)
    d = LinearChain.from_potentials(initial, links)
    assert d.batch_shape == (2,)
    assert d.event_shape == (5,)
    normalised = LinearChain.from_potentials(initial.log_softmax(-1), links.log_softmax(-1))
    torch.testing.assert_close(normalised.log_partition, torch.zeros(2, dtype=F64))
    values = torch.tensor([0, 2, 1, 1, 0])
    right = initial.log_softmax(-1)[:, 0] + links.log_softmax(-1)[torch.arange(4), values[:-1], values[1:]].sum()
    torch.testing.assert_close(normalised.log_prob(values), right)


def test_matchings_as_pyro_has_them() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 5, dtype=F64)
    d, other = GibbsMatching(logits), dist.OneOneMatching(logits)
    values = d.enumerate_support()[::7]
    torch.testing.assert_close(d.log_prob(values), torch.stack([other.log_prob(v) for v in values]))
    large = GibbsMatching(torch.randn(12, 12, dtype=F64))
    torch.testing.assert_close(large.marginals().sum(-1), torch.ones(12, dtype=F64))
    torch.testing.assert_close(large.marginals().sum(-2), torch.ones(12, dtype=F64))
    assert (large.sample((10,)).sort(-1).values == torch.arange(12)).all()


def test_trees_as_pyro_has_them() -> None:
    torch.manual_seed(0)
    edges = torch.randn(10)
    d, other = SpanningTree.from_edges(edges), dist.SpanningTree(edges)
    values = d.enumerate_support()[::5]
    found = torch.stack([other.log_prob(each) for each in d.edges_of(values)])
    torch.testing.assert_close(d.log_prob(values), found, rtol=0, atol=1e-5)
    torch.testing.assert_close(d.edge_mean, other.edge_mean, rtol=0, atol=1e-5)
    assert (d.edges_of(d.mode) == other.mode).all()


@pytest.mark.parametrize("scale", [1.0, 15.0, 60.0, 200.0])
@pytest.mark.parametrize("nodes", [5, 12, 30])
def test_peaked_trees(nodes: int, scale: float) -> None:
    """Whichever way is taken, marginals into each node sum to one and are those by elimination, in all digits."""
    torch.manual_seed(nodes)
    for _ in range(6):
        logits = scale * torch.randn(nodes, nodes, dtype=F64)
        d = Arborescence(logits.requires_grad_())
        eliminated = Arborescence(logits.detach().requires_grad_())
        eliminated._kept = (
            logits._version,
            True,
            (sum_by_elimination(eliminated._weights(eliminated.logits), log_sum_exp),),
        )
        torch.testing.assert_close(d.log_partition, eliminated.log_partition, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(d.marginals(), eliminated.marginals(), rtol=0, atol=1e-8)
        into = d.marginals()[:, 1:].sum(0)
        torch.testing.assert_close(into, torch.ones_like(into), rtol=0, atol=1e-9)
        mode = d.log_prob(d.mode)
        assert (d.log_prob(d.sample((3,))) <= mode + 1e-6).all()


@pytest.mark.statistical
def test_draws_by_elimination_have_the_law() -> None:
    """Chi-square of 15 degrees of freedom, at 1e-6 under a fixed seed: 59.8."""
    torch.manual_seed(0)
    d = Arborescence.small()[0]
    values = d.enumerate_support()
    drawn = d._draw_by_elimination(torch.Size((8000,)))
    counts = (drawn.unsqueeze(1) == values).all(-1).double().sum(0)
    expected = 8000 * d.log_prob(values).exp()
    assert ((counts - expected).square() / expected).sum() < 59.8


def test_best_trees_where_all_are_alike() -> None:
    d = Arborescence(torch.zeros(3, 6, 6))
    assert d.support.check(d.mode).all()


LAWS: list[Structure] = [
    PlackettLuce(torch.randn(3, 5)),
    PlackettLuce(torch.randn(3, 5), 2),
    KSubset(torch.randn(3, 6), 2),
    SequentialMatching(torch.randn(3, 4, 4)),
    GibbsMatching(torch.randn(3, 4, 4)),
    LinearChain(torch.randn(3, 5, 2, 2)),
    Arborescence(torch.randn(3, 4, 4)),
]


@pytest.mark.parametrize("structure", LAWS, ids=lambda d: type(d).__name__)
def test_a_graph_of_draw_score_and_slope_holds_at_other_logits(structure: Structure) -> None:
    """No step decides by values: traced at one batch of logits, it is right at another."""

    def step(logits: Tensor) -> tuple[Tensor, ...]:
        logits = logits.detach().requires_grad_()
        d = structure.like(logits)
        value = d.sample()
        total = d.log_prob(value).sum()
        if d.defines("perturb_given"):
            total = total + d.soft(d.perturb_given(value), 0.5).square().sum()
        if d.defines("marginals"):
            total = total + d.marginals().square().sum()
        return value, d.log_prob(value).detach(), *torch.autograd.grad(total, logits)

    graph = make_fx(step)(structure.logits)
    others = 3 * structure.logits.flip(0).contiguous()
    others = others + others.transpose(-1, -2) if structure.param_dim == 2 else others
    torch.manual_seed(1)
    traced = graph(others)
    torch.manual_seed(1)
    direct = step(others)
    if isinstance(structure, Arborescence):  # drawn by another way, of the same law
        direct = step_at(structure, others, traced[0])
    for one, other in zip(traced, direct, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def step_at(structure: Structure, logits: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    logits = logits.detach().requires_grad_()
    d = structure.like(logits)
    total = d.log_prob(value).sum() + d.marginals().square().sum()
    return value, d.log_prob(value).detach(), *torch.autograd.grad(total, logits)


@pytest.mark.parametrize("structure", [d for d in LAWS if d.defines("marginals")], ids=lambda d: type(d).__name__)
def test_tables_are_shared_and_renewed(structure: Structure, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = type(structure)._make_tables
    monkeypatch.setattr(type(structure), "_make_tables", lambda self, logits: made.append(1) or original(self, logits))
    leaf = structure.logits.clone().requires_grad_()
    d = structure.like(leaf)
    value = d.sample()
    d.log_prob(value)
    assert len(made) == 1
    with torch.no_grad():
        d.log_prob(value)
    assert len(made) == 1
    for _ in range(2):
        d.log_prob(value).sum().backward()
    with torch.no_grad():
        leaf += 1.0
        before = len(made)
        d.log_prob(value)
    assert len(made) == before + 1


def test_elements_that_expand_repeats_share_their_tables() -> None:
    d = GibbsMatching(torch.randn(10, 10)).expand((5000,))
    assert d.tables[1].stride(0) == 0  # 5,000 tables of 2^10 states would be 200 MB
    assert d.sample().shape == (5000, 10)

"""Every structure of the package keeps the protocol, and its list of values is held against an independent one."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.distributions import kl_divergence

import pyro_discrete.distributions as distributions
from pyro_discrete.distributions import (
    Arborescence,
    DecisionGraph,
    GibbsMatching,
    GibbsStructure,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    SpanningTree,
    Structure,
)
from pyro_discrete.testing import assert_contract, check_structure, discover_structures

STRUCTURES = discover_structures()


def test_all_structures_are_found() -> None:
    written = {each for each in vars(distributions).values() if isinstance(each, type) and issubclass(each, Structure)}
    assert written - set(STRUCTURES) == {Structure, GibbsStructure, DecisionGraph}
    assert {PlackettLuce, KSubset, SequentialMatching, GibbsMatching, LinearChain, Arborescence, SpanningTree} == set(
        STRUCTURES
    )


@pytest.mark.statistical
@pytest.mark.parametrize("structure", STRUCTURES)
def test_keeps_the_protocol(structure: type[Structure]) -> None:
    """A right structure fails with probability 1e-4, all comparisons together, under a fixed seed."""
    assert_contract(check_structure(structure, draws=10_000))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("structure", STRUCTURES)
def test_keeps_the_protocol_by_many_draws(structure: type[Structure]) -> None:
    assert_contract(check_structure(structure, draws=50_000, seed=1))


def as_set(values: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(each.tolist()) for each in values}


def trees(n: int) -> set[tuple[int, ...]]:
    found = set()
    for parents in itertools.product(range(n), repeat=n - 1):
        ancestors = list(range(n))
        for _ in range(n):
            ancestors = [v if v == 0 else parents[v - 1] for v in ancestors]
        if not any(ancestors):
            found.add(parents)
    return found


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64)


LISTS: dict[str, tuple[Structure, set, int]] = {
    "rankings": (PlackettLuce(zeros(4)), set(itertools.permutations(range(4))), 24),
    "lists": (PlackettLuce(zeros(5), 2), set(itertools.permutations(range(5), 2)), 20),
    "subsets": (
        KSubset(zeros(6), 3),
        {tuple(float(i in chosen) for i in range(6)) for chosen in itertools.combinations(range(6), 3)},
        20,
    ),
    "sequential matchings": (SequentialMatching(zeros(4, 4)), set(itertools.permutations(range(4))), 24),
    "Gibbs matchings": (GibbsMatching(zeros(4, 4)), set(itertools.permutations(range(4))), 24),
    "chains": (LinearChain(zeros(3, 3, 3)), set(itertools.product(range(3), repeat=3)), 27),
    "trees": (Arborescence(zeros(4, 4)), trees(4), 16),
    "trees of 5": (SpanningTree(zeros(5, 5)), trees(5), 125),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_list_of_values(name: str) -> None:
    structure, right, count = LISTS[name]
    listed = structure.enumerate_support()
    assert len(listed) == len(right) == count == structure.cardinality
    assert as_set(listed) == right
    torch.testing.assert_close(structure.log_prob(listed).exp(), zeros(count) + 1 / count)  # at logits of zero


def by_hand(structure: str, logits: torch.Tensor) -> Callable[[tuple[float, ...]], float]:
    """The unnormalised log-mass of a value, or the log-mass of a race, by a loop."""
    rows = logits.tolist()

    def race(rows_of: Callable[[int], list[float]], value: tuple[int, ...]) -> float:
        total, left = 0.0, list(range(len(rows)))
        for place, item in enumerate(value):
            total += rows_of(place)[item] - math.log(sum(math.exp(rows_of(place)[j]) for j in left))
            left.remove(item)
        return total

    return {
        "ranking": lambda v: race(lambda _: rows, v),
        "subset": lambda v: sum(logit for logit, chosen in zip(rows, v, strict=True) if chosen),
        "sequential": lambda v: race(lambda place: rows[place], v),
        "matching": lambda v: sum(rows[i][j] for i, j in enumerate(v)),
        "chain": lambda v: rows[0][0][v[0]] + sum(rows[t][v[t - 1]][v[t]] for t in range(1, len(v))),
        "tree": lambda v: sum(rows[u][i + 1] for i, u in enumerate(v)),
    }[structure]


@pytest.mark.parametrize(
    ("name", "make", "shape", "normalised"),
    [
        ("ranking", PlackettLuce, (4,), True),
        ("ranking", lambda logits: PlackettLuce(logits, 3), (5,), True),
        ("subset", lambda logits: KSubset(logits, 2), (5,), False),
        ("subset", lambda logits: KSubset(logits, 4), (7,), False),
        ("sequential", SequentialMatching, (4, 4), True),
        ("matching", GibbsMatching, (4, 4), False),
        ("chain", LinearChain, (3, 3, 3), False),
        ("tree", Arborescence, (4, 4), False),
    ],
)
def test_log_masses_by_hand(name: str, make: Callable, shape: tuple[int, ...], normalised: bool) -> None:
    torch.manual_seed(3)
    logits = 2 * torch.randn(shape, dtype=torch.float64)
    structure = make(logits)
    values = structure.enumerate_support()
    right = torch.tensor([by_hand(name, logits)(tuple(v)) for v in values.long().tolist()], dtype=torch.float64)
    found = structure.log_prob(values)
    torch.testing.assert_close(found, right if normalised else right.log_softmax(0), rtol=1e-10, atol=1e-10)
    if not normalised:
        torch.testing.assert_close(structure.log_partition, right.logsumexp(0), rtol=1e-10, atol=1e-10)


def test_divergences_that_torch_and_pyro_find() -> None:
    torch.manual_seed(0)
    p, q = (KSubset(torch.randn(3, 5, dtype=torch.float64), 2) for _ in range(2))
    right = (
        p.log_prob(p.enumerate_support()).exp()
        * (p.log_prob(p.enumerate_support()) - q.log_prob(p.enumerate_support()))
    ).sum(0)
    torch.testing.assert_close(kl_divergence(p, q), right)
    torch.testing.assert_close(kl_divergence(p.to_event(1), q.to_event(1)), right.sum())
    hidden = torch.tensor([True, False, True])
    torch.testing.assert_close(kl_divergence(p.mask(hidden), q.mask(hidden)), right * hidden)
    torch.testing.assert_close(kl_divergence(p.expand((2, 3)), q.expand((2, 3))), right.expand(2, 3))


@pytest.mark.parametrize(
    "other", [KSubset(torch.zeros(5), 3), KSubset(torch.zeros(4), 2), GibbsMatching(torch.zeros(5, 5))]
)
def test_divergences_between_other_values_are_not_found(other: Structure) -> None:
    """Of the subsets of 2 and those of 3 the divergence is infinite, and the formula would give a number."""
    with pytest.raises(NotImplementedError):
        kl_divergence(KSubset(torch.zeros(5), 2), other)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_are_copied_and_pickled_with_tables_made(structure: type[Structure]) -> None:
    for d in structure.small():
        leaf = d.like(d.logits.clone().requires_grad_())
        value = leaf.sample()
        log_p = leaf.log_prob(value)
        for again in (copy.deepcopy(leaf), pickle.loads(pickle.dumps(leaf))):
            torch.testing.assert_close(again.log_prob(value), log_p)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_transforms_of_torch(structure: type[Structure]) -> None:
    """`torch.func.grad` is autograd, and a batch by `vmap` a batch; but trees choose their way by values."""
    d = structure.small()[0]
    value = d.sample()
    leaf = d.logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(d.like(leaf).log_prob(value), leaf)
    torch.testing.assert_close(torch.func.grad(lambda logits: d.like(logits).log_prob(value))(d.logits), slope)
    if not issubclass(structure, Arborescence):
        batch = torch.stack([d.logits, 0.5 * d.logits])
        found = torch.vmap(lambda logits: d.like(logits).log_prob(value))(batch)
        torch.testing.assert_close(found, d.like(batch).log_prob(value))

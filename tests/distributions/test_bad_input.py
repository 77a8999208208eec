"""What structures say to logits, settings and values that they have no law for: one error each that names its cause."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pyro_discrete.distributions import (
    Arborescence,
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    SpanningTree,
    Structure,
    inverse,
    k_hot,
    precedence,
)
from pyro_discrete.errors import EnumerationError, RelaxationError, SettingError, UnsupportedSiteError
from pyro_discrete.relaxations import SoftIndex

INF = math.inf


def with_inf(shape: tuple[int, ...], *places: tuple[int, ...]) -> torch.Tensor:
    logits = torch.zeros(shape)
    for place in places:
        logits[place] = -INF
    return logits


SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "a length of zero": (lambda: PlackettLuce(torch.zeros(3), 0), "length=0 given, 1 to 3"),
    "a length above n": (lambda: PlackettLuce(torch.zeros(3), 4), "length=4 given, 1 to 3"),
    "a length that is no number": (lambda: PlackettLuce(torch.zeros(3), 1.5), "length=1.5 given"),
    "a k of zero": (lambda: KSubset(torch.zeros(3), 0), "k=0 given, 1 to 3"),
    "a k above n": (lambda: KSubset(torch.zeros(3), 4), "k=4 given, 1 to 3"),
    "a list": (lambda: PlackettLuce([0.0, 1.0]), r"logits \[0.0, 1.0\] given, a tensor"),
    "a divergence of other sizes": (
        lambda: KSubset(torch.zeros(4), 2).kl(KSubset(torch.zeros(4), 3)),
        "the divergence to KSubset.*same class, sizes and settings",
    ),
    "no dims": (lambda: PlackettLuce(torch.zeros(())), "a tensor of at least 1 dims expected"),
    "no dims of a subset": (lambda: KSubset(torch.zeros(()), 1), "a tensor of at least 1 dims expected"),
    "too few dims": (lambda: GibbsMatching(torch.zeros(3)), r"logits \[3\] given, a tensor of at least 2 dims"),
    "not square": (lambda: GibbsMatching(torch.zeros(2, 3, 4)), r"\[.., 3, 4\] given, a square last two dims expected"),
    "not square, sequential": (
        lambda: SequentialMatching(torch.zeros(3, 4)),
        r"SequentialMatching: logits \[.., 3, 4\]",
    ),
    "not square, chain": (lambda: LinearChain(torch.zeros(5, 3, 4)), r"LinearChain: logits \[.., 3, 4\]"),
    "not square, tree": (lambda: Arborescence(torch.zeros(3, 4)), r"Arborescence: logits \[.., 3, 4\]"),
    "a single node": (lambda: Arborescence(torch.zeros(1, 1)), "two nodes or more"),
    "a chain of two dims": (lambda: LinearChain(torch.zeros(3, 3)), "at least 3 dims"),
    "a chain without a link": (lambda: LinearChain(torch.zeros(0, 3, 3)), "at least one link"),
    "potentials that do not fit": (
        lambda: LinearChain.from_potentials(torch.zeros(3), torch.zeros(4, 2, 2)),
        r"initial \[3\] and links \[4, 2, 2\]",
    ),
    "a vector of edges": (lambda: SpanningTree(torch.zeros(3)), "SpanningTree.from_edges takes a vector"),
    "a number of edges of no graph": (lambda: SpanningTree.from_edges(torch.zeros(4)), r"n \(n - 1\) / 2"),
    "trees that are not symmetric": (
        lambda: SpanningTree(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])),
        "not symmetric.*Arborescence",
    ),
    "integers": (lambda: PlackettLuce(torch.zeros(3, dtype=torch.long)), "torch.int64 given, floating"),
    "+inf": (lambda: KSubset(torch.tensor([0.0, INF, 0.0]), 1), r"\+inf given"),
    "too large a matching": (lambda: GibbsMatching(torch.zeros(15, 15)), r"2\^15 = 3.28e\+04.*SequentialMatching"),
    "-inf in a ranking": (lambda: PlackettLuce(with_inf((2, 3), (1, 0))), r"element \(1,\).*3 finite ones expected"),
    "too few finite ones for a list": (lambda: PlackettLuce(with_inf((3,), (0,), (1,)), 2), "2 finite ones expected"),
    "-inf in a sequential matching": (
        lambda: SequentialMatching(with_inf((2, 3, 3), (1, 0, 2))),
        r"-inf in element \(1,\) given.*GibbsMatching takes them",
    ),
    "too few for a subset": (
        lambda: KSubset(with_inf((2, 3), (1, 0), (1, 1)), 2),
        r"no value has mass in element \(1,\); at least 2 logits",
    ),
    "a row without a column": (
        lambda: GibbsMatching(with_inf((3, 3), (0, 0), (0, 1), (0, 2))),
        "GibbsMatching: no value has mass; every row needs a column",
    ),
    "two rows with one column": (
        lambda: GibbsMatching(with_inf((3, 3), (0, 0), (0, 1), (1, 0), (1, 1))),
        "no value has mass",
    ),
    "a closed link": (lambda: LinearChain(with_inf((3, 2, 2), (1,))), "no value has mass; all logits of link 1"),
    "a closed first link": (lambda: LinearChain(with_inf((3, 2, 2), (0, 0))), "all logits of link 0"),
    "links that do not join": (
        lambda: LinearChain(with_inf((3, 2, 2), (0, 0, 0), (1, 1, slice(None)))),
        "do not join to a path",
    ),
    "a node without a parent": (
        lambda: Arborescence(with_inf((2, 3, 3), (1, slice(None), 2))),
        r"no value has mass in element \(1,\); all logits into node 2",
    ),
    "a node that is out of reach": (
        lambda: Arborescence(with_inf((3, 3), (0, 1), (0, 2))),
        "cannot be reached from node 0",
    ),
    "too many best values": (lambda: KSubset(torch.zeros(4), 2).top_k(7), "k=7 asked for, of 6 values"),
    "more best values than have mass": (
        lambda: KSubset(with_inf((4,), (0,)), 2).top_k(4),
        "k=4 values asked for, and fewer have mass",
    ),
    "a soft list's precedence": (
        lambda: precedence(torch.full((2, 3), 1 / 3)),
        "a soft list of 2 of 3 items given, a full ranking",
    ),
    "a soft list's inverse": (lambda: inverse(SoftIndex(torch.full((2, 3), 1 / 3))), "a soft list of 2 of 3 items"),
    "a soft list of others": (lambda: k_hot(torch.full((2, 3), 1 / 3), 4), "a soft list of 3 items given, n=4"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings(what: str) -> None:
    make, said = SETTINGS[what]
    with pytest.raises(SettingError, match=said):
        make()


@pytest.mark.parametrize("structure", [KSubset, GibbsMatching, LinearChain, Arborescence, PlackettLuce])
def test_without_validation_values_are_not_looked_at(structure: type[Structure]) -> None:
    d = structure.small()[0]
    nothing = torch.full_like(d.logits, -INF)
    type(d)(nothing, validate_args=False, **d._settings())
    with pytest.raises(SettingError):
        type(d)(nothing, validate_args=True, **d._settings())


@pytest.mark.parametrize("structure", [PlackettLuce, KSubset, SequentialMatching, LinearChain, Arborescence])
def test_nan_is_refused_by_torch(structure: type[Structure]) -> None:
    d = structure.small()[0]
    with pytest.raises(ValueError, match="Expected parameter logits"):
        type(d)(d.logits * math.nan, validate_args=True, **d._settings())


VALUES: dict[str, tuple[Structure, list[list[float]]]] = {
    "rankings": (PlackettLuce(torch.zeros(3)), [[0, 1, 1], [0, 1, 3], [-1, 0, 1], [0, 1], [0.5, 1, 2]]),
    "lists": (PlackettLuce(torch.zeros(4), 2), [[1, 1], [0, 4], [0, 1, 2]]),
    "subsets": (KSubset(torch.zeros(4), 2), [[1, 0, 0, 0], [1, 1, 1, 0], [2, 0, 0, 0], [0.5, 0.5, 1, 0]]),
    "matchings": (GibbsMatching(torch.zeros(3, 3)), [[0, 0, 1], [0, 1, 3]]),
    "chains": (LinearChain(torch.zeros(3, 2, 2)), [[0, 1, 2], [0, -1, 0], [0, 1]]),
    "trees": (Arborescence(torch.zeros(4, 4)), [[2, 1, 0], [1, 0, 0], [3, 1, 2], [0, 0, 4]]),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_outside_the_support(name: str) -> None:
    structure, outside = VALUES[name]
    for value in outside:
        with pytest.raises(ValueError, match=r"support|shape|size"):
            structure.log_prob(torch.tensor(value))


@pytest.mark.parametrize(
    ("structure", "size"), [(PlackettLuce(torch.zeros(20)), "2.433e"), (KSubset(torch.zeros(40), 20), "1.378e")]
)
def test_supports_too_large_to_list_are_counted_alone(structure: Structure, size: str) -> None:
    with pytest.raises(EnumerationError, match=size):
        structure.enumerate_support()


def test_counts_that_no_float_holds() -> None:
    assert PlackettLuce(torch.zeros(1000)).cardinality == INF
    assert PlackettLuce(torch.zeros(1000), 2).cardinality == 999_000
    assert LinearChain(torch.zeros(10_000, 2, 2)).cardinality == INF
    assert SpanningTree(torch.zeros(200, 200)).cardinality == INF


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Arborescence(torch.zeros(3, 3)).perturb(), "Arborescence has no noise that stands for a value"),
        (lambda: Arborescence(torch.zeros(3, 3)).perturb_given(torch.zeros(2)), "has no noise given a value"),
        (lambda: PlackettLuce(torch.zeros(3)).marginals(), "PlackettLuce has no marginals"),
        (lambda: SequentialMatching(torch.zeros(3, 3)).mode, "SequentialMatching has no best value"),
        (lambda: Arborescence(torch.zeros(3, 3)).top_k(2), "has no list of the k best values"),
    ],
)
def test_what_a_structure_cannot_do(call: Callable[[], object], said: str) -> None:
    with pytest.raises(UnsupportedSiteError, match=said):
        call()


def test_capabilities_are_read_off_the_class() -> None:
    assert PlackettLuce.defines("perturb", "perturb_given", "soft", "log_mass", "argmax")
    assert not PlackettLuce.defines("marginals")
    assert not PlackettLuce.defines("top_k")
    assert not SequentialMatching.defines("argmax")
    assert Arborescence.defines("marginals", "log_mass", "argmax")
    assert not Arborescence.defines("perturb")
    assert KSubset.defines("perturb_given", "marginals", "top_k")


def test_relaxed_values_that_were_computed_with_tell_no_order() -> None:
    moved = SoftIndex(torch.full((3, 3), 1 / 3), torch.arange(3) + 1, site="order")
    for function in (precedence, inverse, lambda order: k_hot(order, 3)):
        with pytest.raises(RelaxationError, match="'order'"):
            function(moved)

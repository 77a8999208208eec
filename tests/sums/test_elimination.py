"""Sums by elimination against sums by brute force, along chains and elsewhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pyro.ops.rings import LogRing

from pyro_discrete.draws.log_space import log_sum_exp
from pyro_discrete.sums import elimination
from pyro_discrete.sums.elimination import Elimination, SizesAlone


def named(values, dims):
    values._pyro_dims = dims
    return values


def factors(scopes, sizes, seed=0):
    torch.manual_seed(seed)
    return [named(2 * torch.randn([sizes[d] for d in scope], dtype=torch.float64), scope) for scope in scopes]


def brute_force(terms, dims, sizes):
    """The sum over `dims` of the table of all joint values."""
    kept = sorted({d for t in terms for d in t._pyro_dims} - set(dims))
    order = [*kept, *dims]
    values = torch.cartesian_prod(*(torch.arange(sizes[d]) for d in order)).reshape(-1, len(order))
    column = {d: values[:, i] for i, d in enumerate(order)}
    table = sum(t[tuple(column[d] for d in t._pyro_dims)] for t in terms)
    return table.reshape([sizes[d] for d in kept] + [-1]).logsumexp(-1)


def agrees(scopes, dims, sizes):
    terms = factors(scopes, sizes)
    ring = Elimination()
    got = ring.sumproduct(terms, dims)
    assert torch.allclose(got, brute_force(terms, dims, sizes), atol=1e-12)
    assert got._pyro_dims == "".join(sorted({d for s in scopes for d in s} - set(dims)))
    return ring


def test_small_graphs():
    sizes = dict(zip("abcdep", (2, 3, 4, 2, 3, 2), strict=True))
    agrees(["ab", "bc", "cd", "de", "ea"], "abcde", sizes)
    agrees(["abp", "bcp", "c", "dp"], "abcd", sizes)
    agrees(["ab", "ac", "ad"], "bcd", sizes)
    agrees(["a"], "a", sizes)
    agrees(["abc"], "", sizes)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("plates", ["", "Z"])
def test_chains_are_scanned_and_right(width, plates):
    """Binary chains of each order, with factors on one link, on two, and on a window; of a length no width divides."""
    letters = "abcdefghijklmnopq"
    sizes = dict.fromkeys(letters, 2) | {"Z": 2}
    windows = [letters[max(0, i - width) : i + 1] + plates for i in range(len(letters))]
    scopes = [*windows, *(d + plates for d in letters), *letters[3:9]]
    scopes = ["".join(sorted(s)) for s in scopes]
    ring = agrees(scopes, letters, sizes)
    eliminated = Elimination()
    eliminated._eliminate(factors(scopes, sizes), letters)
    assert ring.largest != eliminated.largest  # it was the scan that ran


def test_combs_hubs_and_uneven_chains():
    links, teeth = "abcdefgh", "ABCDEFGH"
    sizes = dict.fromkeys(links + teeth + "z", 2)
    comb = [links[i : i + 2] for i in range(7)] + [t + c for c, t in zip(links, teeth, strict=True)] + list(teeth)
    agrees(["".join(sorted(s)) for s in comb], links + teeth, sizes)
    long = "abcdefghijklmnop"
    hub = [long[i : i + 2] + "z" for i in range(15)] + ["z", *long]
    agrees(hub, long + "z", sizes | dict.fromkeys(long, 2))
    uneven = dict.fromkeys(long, 2) | {"c": 3, "k": 1}
    agrees([long[i : i + 2] for i in range(15)], long, uneven)


def test_a_long_chain_agrees_with_pyros_order_and_its_gradient_too():
    torch.manual_seed(2)
    length, states = 60, 3
    letters = [chr(0x100 + i) for i in range(length)]
    table = torch.randn(length, states, states, dtype=torch.float64, requires_grad=True)

    def total(ring):
        terms = [named(table[0, 0].clone(), letters[0])]
        terms += [named(table[t].clone(), letters[t - 1] + letters[t]) for t in range(1, length)]
        value = ring.sumproduct(terms, letters)
        return value, torch.autograd.grad(value, table)[0]

    for got, expected in zip(total(Elimination()), total(LogRing()), strict=True):
        assert torch.allclose(got, expected, atol=1e-9)


def test_cost_is_found_by_sizes_alone():
    long = "abcdefghijklmnopqr"
    chain = [long[i : i + 2] + "p" for i in range(17)] + ["ap", "ak"]
    for scopes, dims in ((["abp", "bcp", "cdp", "dap", "ap", "dk"], "abcd"), (chain, long.replace("p", ""))):
        sizes = dict.fromkeys(long, 3) | {"p": 2, "k": 4}
        scopes = ["".join(sorted(set(s))) for s in scopes]
        real, alone = Elimination(), SizesAlone()
        computed, blank = real.sumproduct(factors(scopes, sizes), dims), alone.sumproduct(factors(scopes, sizes), dims)
        assert (real.largest, real.operations) == (alone.largest, alone.operations)
        assert (computed.shape, computed._pyro_dims) == (blank.shape, blank._pyro_dims)


def test_impossible_values():
    table = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
    total = log_sum_exp(table, 1)
    assert total.tolist() == [0.0, -torch.inf]
    (gradient,) = torch.autograd.grad(total[0], table)
    assert gradient.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    (gradient,) = torch.autograd.grad(log_sum_exp(table, 1).sum(), table)
    assert gradient.isfinite().all()


def test_products_far_apart_do_not_underflow():
    """In float32, where exponentials of a message and of a transition taken by themselves would be zero."""
    message, step = named(torch.tensor([0.0, -200.0]), "a"), named(torch.tensor([[-300.0], [0.0]]), "ab")
    assert Elimination().sumproduct([message, step], "a").item() == -200.0
    assert elimination.log_sum_exp(torch.tensor([1e4, 1e4]), 0).item() == pytest.approx(1e4 + 0.6931, abs=1e-2)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("plates", ["", "Z"])
def test_chains_of_many_states_go_link_by_link(width, plates, monkeypatch):
    """The same sums and gradients as in pairs, of any order of the chain, and again when these are differentiated."""
    letters = "abcdefghijklmnopqrstu"
    sizes = dict.fromkeys(letters, 9 if width == 1 else 3) | {"Z": 2}
    scopes = ["".join(sorted(letters[max(0, i - width) : i + 1] + plates)) for i in range(len(letters))]
    terms = [*factors([*scopes, *letters], sizes), *factors(scopes[4:5], sizes, 1)]
    for term in terms:
        term.requires_grad_()
    results, operations = [], []
    for sequential in (True, False):
        if not sequential:
            monkeypatch.setattr(elimination, "SEQUENTIAL", 10**6)
        ring, alone = Elimination(), SizesAlone()
        total = ring.sumproduct(terms, letters)
        assert total._pyro_dims == plates
        alone.sumproduct([elimination.Table(t.shape, t._pyro_dims) for t in terms], letters)
        assert (alone.largest, alone.operations) == (ring.largest, ring.operations)
        first = torch.autograd.grad(total.sum(), terms, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), terms)
        results.append([total, *first, *second])
        operations.append(ring.operations)
    assert operations[0] < 0.5 * operations[1]
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_links_beyond_what_can_be_stacked_go_one_by_one(monkeypatch):
    monkeypatch.setattr(elimination, "MOST_STACKED", 100)
    monkeypatch.setattr(elimination, "SCAN_TABLE", 100)
    letters = "abcdefghijklmnopqrst"
    sizes = dict.fromkeys(letters, 8)
    terms = factors(["a", *(a + b for a, b in pairwise(letters))], sizes)
    ring = Elimination()
    total = ring.sumproduct(terms, letters)
    monkeypatch.undo()
    assert torch.allclose(total, Elimination().sumproduct(terms, letters), atol=1e-12)
    assert ring.largest == 64

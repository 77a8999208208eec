"""Sums over enumerated dims by variable elimination in log space; along chains in logarithmic depth."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_discrete.draws.forward_backward import chain_log_sum
from pyro_discrete.draws.log_space import Reduce, log_product, log_sum_exp

__all__ = [
    "Elimination",
    "SizesAlone",
    "Table",
    "aligned",
    "dims_of",
    "highest",
    "named",
    "random_value",
    "selected",
]


LONG = 16
"""So many dims at least make a chain worth looking for."""


SCAN_TABLE = 2**15
"""Elements of the table by which two links of a chain are joined; beyond it, one link after another is faster."""

SEQUENTIAL = 8
"""From so many states of a chain on, one link after another is faster, by forward and backward sums."""

MOST_STACKED = 2**24
"""So many elements at most all links of a chain have together, for forward and backward sums."""


class Elimination(LogRing):
    """Pyro's ring of sums and products in log space, with an order of sums of its own.

    Dims are summed out one by one, the one that leaves the smallest table first. Dims that follow one another in a
    chain (a hidden Markov model, of any order) are summed out in pairs of links at once, in log2(length) rounds, or,
    where they have many states, by one operation that goes through the links (`chain_log_sum`).

    - `reduce(table, dim)`: sums a dim out; another one gives maxima, or draws.
    - `largest`, `operations`: elements of the largest table so far, and of all tables together (`SizesAlone` gives
      these without doing the work).

    Source: Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs; Särkkä and García-Fernández
    (2021), Temporal parallelization of Bayesian smoothers.
    """

    def __init__(self, reduce: Reduce = log_sum_exp) -> None:
        super().__init__()
        self.reduce = reduce
        self.largest: int = 0
        self.operations: int = 0

    def begin(self, dims: Iterable[str]) -> None:
        """These are the dims that will be summed over."""

    def sumproduct(self, terms: Iterable[Tensor], dims: Iterable[str]) -> Tensor:
        """The sum of `terms` (a product, in log space) over `dims`; terms have their dims' symbols in `_pyro_dims`."""
        terms, pending = list(terms), sorted(dims)
        if len(pending) >= LONG:
            terms, pending = self._along_chain(*self._without_leaves(terms, pending))
        return self._combined(self._eliminate(terms, pending))

    def _eliminate(self, terms: Sequence[Tensor], dims: Iterable[str]) -> list[Tensor]:
        """Sum out one dim after another, the one that leaves the smallest table first."""
        held = dict(enumerate(terms))
        where: dict[str, set[int]] = {dim: set() for dim in dims}
        for i, term in held.items():
            for dim in dims_of(term):
                if dim in where:
                    where[dim].add(i)

        def size(dim: str) -> int:
            sizes = {d: n for i in where[dim] for d, n in zip(dims_of(held[i]), held[i].shape, strict=True)}
            return math.prod(sizes.values())

        heap = [(size(dim), dim) for dim in where]
        heapq.heapify(heap)
        following = len(held)
        while heap:
            expected, dim = heapq.heappop(heap)
            if dim not in where:
                continue
            if len(where[dim]) > 1 and size(dim) > expected:
                heapq.heappush(heap, (size(dim), dim))
                continue
            touched = where.pop(dim)
            made = self._summed(self._combined([held.pop(i) for i in sorted(touched)]), dim)
            for other in dims_of(made):
                if other in where:
                    where[other] = (where[other] - touched) | {following}
            held[following] = made
            following += 1
            for other in dims_of(made):
                if other in where and len(where[other]) <= LONG:
                    heapq.heappush(heap, (size(other), other))
        return list(held.values())

    def _summed(self, table: Tensor, dim: str) -> Tensor:
        if dim not in dims_of(table):
            return table
        position = dims_of(table).index(dim)
        return named(self.reduce(table, position), dims_of(table).replace(dim, ""))

    def _combined(self, terms: Sequence[Tensor]) -> Tensor:
        """The terms' product, over the union of their dims."""
        if len(terms) == 1:
            self._note(terms[0].numel())
            return terms[0]
        union = "".join(sorted({d for t in terms for d in dims_of(t)}))
        table = self._added(terms, union)
        self._note(table.numel())
        return named(table, union)

    def _added(self, terms: Sequence[Tensor], union: str) -> Tensor:
        table = aligned(terms[0], union)
        for term in terms[1:]:
            table = table + aligned(term, union)
        return table

    def _note(self, elements: int, tables: int = 1) -> None:
        self.largest = max(self.largest, elements)
        self.operations += tables * elements

    def _without_leaves(self, terms: list[Tensor], dims: list[str]) -> tuple[list[Tensor], list[str]]:
        """Sum out dims that hang on one other alone (a comb's teeth), unless these are only the ends of a chain."""
        while True:
            neighbours: dict[str, set[str]] = {dim: set() for dim in dims}
            for term in terms:
                inside = {d for d in dims_of(term) if d in neighbours}
                for dim in inside:
                    neighbours[dim] |= inside
            leaves = [d for d, others in neighbours.items() if len(others) <= 2]
            if len(leaves) <= 2 or len(leaves) == len(dims):
                return terms, dims
            terms, dims = self._eliminate(terms, leaves), [d for d in dims if d not in set(leaves)]

    def _along_chain(self, terms: list[Tensor], dims: list[str]) -> tuple[list[Tensor], list[str]]:
        """What is left when the dims that form a chain are summed out; terms and dims as they were if none do."""
        counts = dict.fromkeys(dims, 0)
        sizes: dict[str, int] = {}
        for term in terms:
            sizes.update(zip(dims_of(term), term.shape, strict=True))
            for dim in dims_of(term):
                if dim in counts:
                    counts[dim] += 1
        hubs = [d for d in dims if counts[d] > max(LONG, len(terms) // 4)]
        links = [d for d in dims if d not in set(hubs)]
        if len(links) < LONG or len({sizes[d] for d in links}) > 1:
            return terms, dims
        index = {dim: i for i, dim in enumerate(links)}
        touched = [[index[d] for d in dims_of(t) if d in index] for t in terms]
        width = max(max(max(at) - min(at) for at in touched if at), 1)
        states = sizes[links[0]] ** width
        others = {d: n for t in terms for d, n in zip(dims_of(t), t.shape, strict=True) if d not in index}
        matrix = states**2 * math.prod(others.values())
        sequential = self._goes_through(states, len(links) // width * matrix)
        if len(links) // width < LONG // 4 or (not sequential and states * matrix > SCAN_TABLE):
            return terms, dims
        spare = len(links) % width
        terms = self._eliminate(terms, links[:spare])
        chain = [t for t in terms if any(d in index for d in dims_of(t))]
        rest = [t for t in terms if not any(d in index for d in dims_of(t))]
        batch = "".join(sorted(others))
        return [*rest, named(self._scanned(chain, links[spare:], width, sizes, batch), batch)], hubs

    def _goes_through(self, states: int, stacked: int) -> bool:
        """Whether a chain's links, of so many elements, are summed up one after another."""
        return self.reduce is log_sum_exp and states >= SEQUENTIAL and stacked <= MOST_STACKED

    def _scanned(
        self, terms: Sequence[Tensor], dims: Sequence[str], width: int, sizes: dict[str, int], batch: str
    ) -> Tensor:
        """The product in log space of a chain's matrices, summed over its first and last state: `[*batch]`."""
        matrices = _links(terms, dims, width, sizes, batch)
        if self._goes_through(matrices.shape[1], matrices.numel()):
            self._note(matrices[0].numel(), len(matrices))
            return chain_log_sum(matrices)
        for paired in _pairs(len(matrices)):
            self._note(paired * matrices[0].numel() * matrices.shape[1])
        product, taken = log_product(matrices, self.reduce)
        return self.reduce(self.reduce(product, 0), 0) + taken


class Table:
    """A term of which the sizes alone are known, however large they are."""

    def __init__(self, shape: Iterable[int], dims: str) -> None:
        self.shape: tuple[int, ...] = tuple(shape)
        self._pyro_dims = dims

    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


class SizesAlone(Elimination):
    """Goes the way of `Elimination` with the sizes of its tables, and computes none of them.

    - `width`: how many of the dims that are summed over the largest table joins.
    """

    largest: int
    operations: int

    def __init__(self) -> None:
        super().__init__()
        self.width: int = 0
        self.summed: set[str] = set()

    def begin(self, dims: Iterable[str]) -> None:
        self.summed.update(dims)

    def weigh(self, largest: int, operations: int) -> None:
        """A sum that is taken otherwise: its largest table, and what is computed."""
        self.largest = max(self.largest, largest)
        self.operations += operations

    def product(self, term: Any, ordinal: Iterable[str]) -> Any:
        sizes = {d: n for d, n in zip(dims_of(term), term.shape, strict=True) if d not in ordinal}
        return Table(sizes.values(), "".join(sizes))

    def _added(self, terms: Sequence[Any], union: str) -> Any:
        sizes = {d: n for t in terms for d, n in zip(dims_of(t), t.shape, strict=True)}
        made = Table((sizes[d] for d in union), union)
        if made.numel() >= self.largest:
            self.width = sum(d in self.summed for d in union)
        return made

    def _summed(self, table: Any, dim: str) -> Any:
        return self.product(table, dim)

    def _scanned(self, terms: Sequence[Any], dims: Sequence[str], width: int, sizes: dict[str, int], batch: str) -> Any:
        rest, links = [sizes[d] for d in batch], len(dims) // width - 1
        states = sizes[dims[0]] ** width
        matrix = states**2 * math.prod(rest)
        if self._goes_through(states, links * matrix):
            self._note(matrix, links)
            return Table(rest, batch)
        for paired in _pairs(links):
            self._note(paired * states * matrix)
        return Table(rest, batch)


def _pairs(links: int) -> Iterator[int]:
    """How many pairs are joined, round after round, until one link is left."""
    while links > 1:
        yield links // 2
        links = (links + 1) // 2


def _links(terms: Sequence[Tensor], dims: Sequence[str], width: int, sizes: dict[str, int], batch: str) -> Tensor:
    """A matrix between each block of `width` dims and the next, `[n, S, S, *batch]`: every term in one of them."""
    index = {dim: i for i, dim in enumerate(dims)}
    count = len(dims) // width - 1
    alike: dict[tuple[tuple[int, ...], str, int], list[tuple[int, Tensor]]] = {}
    seen: dict[tuple[int, tuple[int, ...], str], int] = {}
    for term in terms:
        at = sorted(index[d] for d in dims_of(term) if d in index)
        link = max(at[-1] // width - 1, 0)
        places = tuple(i - link * width for i in at)
        beside = "".join(sorted(d for d in dims_of(term) if d not in index))
        number = seen[link, places, beside] = seen.get((link, places, beside), -1) + 1
        ordered = aligned(term, "".join([dims[i] for i in at]) + beside)
        alike.setdefault((places, beside, number), []).append((link, ordered))
    total: Tensor | None = None
    for (places, beside, _), group in alike.items():
        group.sort(key=lambda pair: pair[0])
        stacked = torch.stack([term for _, term in group])
        shape = [sizes[dims[0]] if p in places else 1 for p in range(2 * width)]
        stacked = stacked.reshape([len(group), *shape, *(sizes[d] if d in beside else 1 for d in batch)])
        if len(group) < count:
            at = torch.tensor([link for link, _ in group], device=stacked.device)
            stacked = stacked.new_zeros((count, *stacked.shape[1:])).index_add(0, at, stacked)
        total = stacked if total is None else total + stacked
    if total is None:
        raise RuntimeError("a chain has no terms")
    rest = [sizes[d] for d in batch]
    states = sizes[dims[0]] ** width
    return total.expand([count, *[sizes[dims[0]]] * (2 * width), *rest]).reshape([count, states, states, *rest])


def dims_of(term: Any) -> str:
    """The symbols of a term's dims."""
    return term._pyro_dims  # type: ignore[attr-defined]


def named(term: Any, dims: str) -> Any:
    """The term, its dims marked by these symbols."""
    term._pyro_dims = dims
    return term


def selected(term: Any, dim: str, index: int) -> Any:
    """The term at one index of a dim; itself where it has no such dim."""
    dims = dims_of(term)
    if dim not in dims:
        return term[...] if isinstance(term, Tensor) else Table(term.shape, dims)
    position = dims.index(dim)
    if isinstance(term, Tensor):
        return named(term.select(position, index), dims.replace(dim, ""))
    return Table((*term.shape[:position], *term.shape[position + 1 :]), dims.replace(dim, ""))


def aligned(term: Tensor, dims: str) -> Tensor:
    """The term with its dims in the order of `dims`, of size 1 where it has none."""
    own = dims_of(term)
    if own == dims:
        return term
    ordered = term.permute([own.index(d) for d in dims if d in own])
    sizes = iter(ordered.shape)
    return ordered.reshape([next(sizes) if d in own else 1 for d in dims])


def highest(table: Tensor, dim: int) -> Tensor:
    """The largest value along a dim."""
    return table.max(dim).values


class _RandomValue(torch.autograd.Function):
    """A log-sum whose backward pass goes to one value, drawn by its share."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, dim: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table)
        ctx.dim = dim
        return log_sum_exp(table, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (table,) = ctx.saved_tensors
        noise = torch.empty_like(table).exponential_().log().neg()  # Gumbel
        chosen = (table + noise).argmax(ctx.dim, keepdim=True)
        return torch.zeros_like(table).scatter(ctx.dim, chosen, gradient.unsqueeze(ctx.dim)), None


def random_value(table: Tensor, dim: int) -> Tensor:
    """The log-sum along a dim; its gradient is one at a value drawn by its share, and zero at the others."""
    return _RandomValue.apply(table, dim)  # type: ignore[return-value]

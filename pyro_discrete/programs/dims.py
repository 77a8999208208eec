"""The dims of a run: plates, the columns and particles that its rows are, and what subsampling multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

__all__ = [
    "ROWS_PLATE",
    "Columns",
    "Frames",
    "Layout",
    "plates_of",
    "subsampling_scale",
]


ROWS_PLATE = "_rows"
"""Name of the leftmost plate that holds rows x particles."""


class _Plate(CondIndepStackFrame):
    """Pyro's frame, which equals it, without the context manager that its key enters at every comparison and hash."""

    def _key(self) -> tuple[str, int | None, int, int]:
        return self[:4]

    def __hash__(self) -> int:
        return hash(self[:4])


def plates_of(msg: Any) -> frozenset[CondIndepStackFrame]:
    """The plates around a site, sequential ones included, the rows left out.

    `pyro.plate("data")` states no size: it is as large as what is drawn in it.
    """
    frames = tuple([tuple(f) for f in msg["cond_indep_stack"]])
    plates = _plates(frames)
    if plates is None:
        return _plates(tuple(_sized(frames, getattr(msg["fn"], "batch_shape", ()))), as_they_are=True) or frozenset()
    return plates


def _sized(frames: Iterable[tuple[Any, ...]], batch: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for name, dim, size, *others in frames:
        shown = batch[dim] if dim is not None and len(batch) >= -dim else 1
        yield (name, dim, size if size > 0 or dim is None else shown, *others)


@lru_cache(maxsize=1024)  # every step asks for the same ones several times
def _plates(frames: tuple[tuple[Any, ...], ...], as_they_are: bool = False) -> frozenset[CondIndepStackFrame] | None:
    """None where one of the frames has no size, unless they are to be taken as they are."""
    if not as_they_are and any(size <= 0 for _, _, size, *_ in frames):
        return None
    return frozenset([_Plate(*f) for f in frames if f[0] != ROWS_PLATE])


def subsampling_scale(plates: Iterable[CondIndepStackFrame]) -> float:
    """The factor by which the plates' subsampling multiplies a log-probability: product of full size / size."""
    return math.prod(f.full_size / f.size for f in plates if f.full_size and f.size > 0)


@dataclass
class Columns:
    """Which columns each site owns; column 0 is nobody's.

    - `owned`: site to its columns. Sites of a product own theirs together.
    - `products`: for a site of a product, the names of all of its sites.
    - `apart`: the plates whose elements are moved one at a time at a site, each with the size there is room for. A
      site's rows are then those of `PlateElements`.
    """

    owned: dict[str, list[int]] = field(default_factory=dict)
    count: int = 1
    products: dict[str, tuple[str, ...]] = field(default_factory=dict)
    apart: dict[str, Mapping[str, int]] = field(default_factory=dict)
    _rows: dict[str, list[int]] = field(default_factory=dict)

    def room(self, name: str) -> int:
        """For how many elements, moved one at a time, the site has columns."""
        return math.prod(self.apart.get(name, {}).values())

    def give(self, name: str, extra: int) -> None:
        """Append `extra` columns owned by the named site, for each of its elements that are moved one at a time."""
        extra *= self.room(name)
        self.owned[name] = list(range(self.count, self.count + extra))
        self.count += extra

    def give_product(self, extra: Mapping[str, int]) -> None:
        """Append a column for each combination of these sites' rows 1 to `extra`, for each of their elements again."""
        joint, below, elements = math.prod(extra.values()), 1, self.room(next(iter(extra)))
        columns = list(range(self.count, self.count + joint * elements))
        for name, values in extra.items():
            self.owned[name], self.products[name] = columns, tuple(extra)
            self._rows[name] = [1 + e * values + i // below % values for e in range(elements) for i in range(joint)]
            below *= values
        self.count += joint * elements

    def rows_of(self, name: str) -> list[int]:
        """Columns of the site's rows: column 0 and its own."""
        return [0, *self.owned.get(name, [])]

    def placed(self, name: str) -> dict[int, int]:
        """Each of the site's own columns, and the row of its draw that is there."""
        columns = self.owned.get(name, [])
        return dict(zip(columns, self._rows.get(name, range(1, len(columns) + 1)), strict=True))

    def together(self, members: Iterable[str], number: int) -> dict[str, int]:
        """The rows of a product's sites in its joint value of this number."""
        return {name: self._rows[name][number] for name in members}


@dataclass(frozen=True)
class Layout:
    """What a run's rows are.

    - `particles`: independent repetitions; what leave-one-out runs over.
    - `inner`: None where each particle is by itself, else how many particles one importance-weighted bound weighs.
    - `columns`: coupled values of a particle, those of one site (in `owned`) beside copies or new draws of the others.
    - `datum`: names of the plates whose elements have a bound of their own. A guide site outside one of them is
      *shared*: drawn once for all inner particles.
    - `doubly`: reparameterised sites that take the doubly reparameterised gradient.
    """

    particles: int
    inner: int | None = None
    columns: int = 1
    owned: Mapping[str, Sequence[int]] = field(default_factory=dict)
    datum: frozenset[str] = field(default_factory=frozenset)
    doubly: frozenset[str] = field(default_factory=frozenset)

    @property
    def size(self) -> int:
        """The number of rows of a run."""
        return self.columns * self.particles * (self.inner or 1)

    def of(self, columns: int, owned: Mapping[str, Sequence[int]]) -> Layout:
        """The same with so many columns."""
        if (self.columns, self.owned) == (columns, owned):
            return self
        return replace(self, columns=columns, owned=owned)

    def block(self, particles: int = 1, inner: int = 1) -> Layout:
        """One column of a part of the particles, or of the inner ones of a particle."""
        inner_ones = None if self.inner is None else inner
        if (self.columns, self.particles, self.inner) == (1, particles, inner_ones):
            return self
        return replace(self, columns=1, owned={}, particles=particles, inner=inner_ones)

    def blocks(self, rows: int) -> Iterator[list[Layout]]:
        """One column in blocks of at most so many rows: for each sample of the objective those of its particles."""
        if self.inner is None:
            for start in range(0, self.particles, rows):
                yield [self.block(min(rows, self.particles - start))]
            return
        inner = [self.block(inner=min(rows, self.inner - start)) for start in range(0, self.inner, rows)]
        for _ in range(self.particles):
            yield inner

    def shares(self, plates: Iterable[CondIndepStackFrame]) -> bool:
        """Whether a site in these plates is drawn once for all inner particles."""
        return self.inner is not None and not self.datum <= {p.name for p in plates}

    def leading(self, plates: Iterable[CondIndepStackFrame]) -> tuple[int, ...]:
        """What stands before the plates' dims of a site: columns, particles and, unless it is shared, inner ones."""
        if self.inner is None or self.shares(plates):
            return (self.columns, self.particles)
        return (self.columns, self.particles, self.inner)

    def copies(self, plates: Iterable[CondIndepStackFrame]) -> int:
        """How many rows beside each other hold the same value of a site in these plates."""
        return (self.inner or 1) if self.shares(plates) else 1

    def first_column(self, plates: Iterable[CondIndepStackFrame], tensor: Tensor) -> Tensor:
        """`[columns * particles * ..., ...]` as `[particles, ..., ...]` of column 0."""
        if self.inner is None or self.shares(plates):
            return tensor if tensor.shape[0] <= self.particles else tensor[: self.particles]
        return self.split(plates, tensor)[0]

    def once(self, plates: Iterable[CondIndepStackFrame], tensor: Tensor) -> Tensor:
        """`[rows, ...]` of a site in these plates as `[columns * particles * (inner unless shared), ...]`."""
        copies = self.copies(plates)
        tensor = tensor.expand(self.size, *tensor.shape[1:])
        return tensor.reshape(-1, copies, *tensor.shape[1:])[:, 0] if copies > 1 else tensor

    def split(self, plates: Iterable[CondIndepStackFrame], tensor: Tensor) -> Tensor:
        """`[columns * particles * ..., ...]`, or `[1, ...]` for all, as `[columns, particles, ..., ...]`."""
        leading, rest = self.leading(plates), tuple(tensor.shape[1:])
        if tensor.shape[0] == 1:
            return tensor.reshape((1,) * len(leading) + rest).expand(leading + rest)
        return tensor.reshape(leading + rest)


Frames = frozenset[CondIndepStackFrame]

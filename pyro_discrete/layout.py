"""How the leading dim of a run is made up: columns x particles, and within a bound's particle its inner ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

__all__ = ["Layout"]


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

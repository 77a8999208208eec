"""The plates around a site, and what their subsampling multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame

__all__ = ["ROWS_PLATE", "plates_of", "subsampling_scale"]

ROWS_PLATE = "_rows"
"""Name of the leftmost plate that holds rows x particles."""


class _Plate(CondIndepStackFrame):
    """Pyro's frame, which equals it, without the context manager that its key enters at every comparison and hash."""

    def _key(self) -> tuple[str, int | None, int, int]:
        return self[:4]

    def __hash__(self) -> int:
        return hash(self[:4])


def plates_of(msg: Any) -> frozenset[CondIndepStackFrame]:
    """The plates around a site, sequential ones included, the rows left out."""
    return _plates(tuple([tuple(f) for f in msg["cond_indep_stack"]]))


@lru_cache(maxsize=1024)  # every step asks for the same ones several times
def _plates(frames: tuple[tuple[Any, ...], ...]) -> frozenset[CondIndepStackFrame]:
    return frozenset([_Plate(*f) for f in frames if f[0] != ROWS_PLATE])


def subsampling_scale(plates: Iterable[CondIndepStackFrame]) -> float:
    """The factor by which the plates' subsampling multiplies a log-probability: product of full size / size."""
    return math.prod(f.full_size / f.size for f in plates if f.full_size and f.size > 0)

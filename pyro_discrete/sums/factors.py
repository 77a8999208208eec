"""The log-probabilities that are summed over enumerated values, and which of them belong to one sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_discrete.distributions.structure import GibbsStructure

__all__ = ["Component", "Factor", "Parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Of which structure a factor reads the numbers that stand at places, by the symbol of its site, and where.

    - `along`: the symbol of a dim of the factor's table, whose entries read the places from `start` on; empty for a
      factor that reads the one place `start`.
    - `width`: how many places in a row each entry reads, from its own on: one, or two.
    - `structure`, `logits`: at the site's own factor, the prior and the symbols of its batch dims.
    """

    site: str
    along: str = ""
    start: int = 0
    width: int = 1
    structure: GibbsStructure | None = None
    logits: str = ""


@dataclass(eq=False)
class Factor:
    """A log-probability that depends on enumerated values: `value` is packed (no dims of size 1, named by symbols).

    `own`: the symbol of the site itself, if it is summed out. `places`: the symbols of the dims of its message.
    `parts`: of one that reads a structure whose values are not listed; its table has the number at a place in the dim
    of that site, and may have a dim for places.
    """

    name: str
    position: int
    value: Tensor
    symbols: frozenset[str]
    plates: frozenset[str]
    message: Any
    own: str = ""
    places: Mapping[int, str] = field(default_factory=dict)
    parts: Parts | None = None


@dataclass
class Component:
    """Factors that share enumerated dims, directly or through others: they are summed out together.

    `inside`: for each symbol that is summed over, the plates in which its site is drawn.
    """

    factors: list[Factor]
    inside: Mapping[str, frozenset[str]]
    sites: list[str]

    @property
    def label(self) -> str:
        """A name for the term that stands for the component."""
        shown = ", ".join([*self.sites[:3], "..."] if len(self.sites) > 3 else self.sites)
        return f"sum over {shown} (up to {self.factors[-1].name})"

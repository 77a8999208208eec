"""Names of sites that differ by a number alone, as those of a chain or a loop do, told in one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

__all__ = [
    "grouped",
    "in_one",
    "pattern_of",
]


FEW_ALIKE = 4
"""So many alike sites are told in one, not fewer."""


def pattern_of(name: str) -> str:
    """What alike names share.

    >>> pattern_of("z_12") == pattern_of("z_3")
    True
    """
    return re.sub(r"\d+", "#", name)


def grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys together, where the first of them is; fewer than `FEW_ALIKE` each by itself.

    >>> grouped(["z", "x", "z", "z", "y", "z"])
    [[0, 2, 3, 5], [1], [4]]
    """
    found: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    groups = [found[key] if len(found[key]) >= FEW_ALIKE else [place] for place, key in enumerate(keys)]
    return [group for place, group in enumerate(groups) if group[0] == place]


def in_one(names: Sequence[str]) -> str:
    """Alike names in one.

    >>> in_one([f"z_{t}" for t in range(300)]), in_one(["x"])
    ('z_0 ... z_299 (300)', 'x')
    """
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})"

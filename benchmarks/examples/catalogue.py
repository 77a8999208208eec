"""The names of all examples."""

from __future__ import annotations

from benchmarks.examples import chains, mixtures, packages, populations
from benchmarks.examples.example import EXAMPLES

__all__ = ["names"]


def names() -> list[str]:
    """In the order in which the modules above enter them."""
    assert all((mixtures.mixture, chains.sequences, populations.captures, packages.Carrier))
    return list(EXAMPLES)

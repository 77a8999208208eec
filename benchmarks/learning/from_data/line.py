"""One claim of a model on data, the mark that was set for it before the run, and what the run found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Line"]


@dataclass(frozen=True)
class Line:
    """What a model claims, the mark set beforehand, what was found, and whether it is right."""

    model: str
    claim: str
    mark: str
    found: str
    right: bool

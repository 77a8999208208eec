"""One claim of a model on data, the mark that was set for it before the run, and what the run found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Line", "over_seeds"]


@dataclass(frozen=True)
class Line:
    """What a model claims, the mark set beforehand, what was found, and whether it is right.

    `figure`: the number that the mark is about; None where there was no run.
    """

    model: str
    claim: str
    mark: str
    found: str
    right: bool
    figure: float | None = None


def over_seeds(lines: Sequence[Line]) -> Line:
    """One line of a claim's lines, a seed each: right where all are; the first seed's words, and all figures.

    >>> one = Line("motif", "a claim", "at most 1", "0.5", True, 0.5)
    >>> over_seeds([one, Line("motif", "a claim", "at most 1", "1.5", False, 1.5)])
    Line(model='motif', ..., found='0.5; 2 seeds, 1 right: 0.5, 1.5, mean 1, deviation 0.71', right=False, ...)
    """
    first, figures = lines[0], [line.figure for line in lines if line.figure is not None]
    if len(figures) < 2:
        return first
    mean, spread = statistics.mean(figures), statistics.stdev(figures)
    found = (
        f"{first.found}; {len(lines)} seeds, {sum(line.right for line in lines)} right: "
        f"{', '.join(f'{figure:.4g}' for figure in figures)}, mean {mean:.4g}, deviation {spread:.2g}"
    )
    return replace(first, found=found, right=all(line.right for line in lines), figure=mean)

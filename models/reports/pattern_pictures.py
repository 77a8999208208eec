"""Pictures of patterns that a program has found: the profile of a motif."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from models.data.sequences import BASES, PlantedMotifs
from models.programs.motif import MotifPlaces

__all__ = ["draw_motif"]


def draw_motif(axes: Axes, program: MotifPlaces, data: PlantedMotifs) -> None:
    """The learned profile on top, below it the frequencies of the aligned sites, a column for each base."""
    tables = (program.profile.softmax(-1).cpu().numpy().T, data.profile.numpy().T)
    gap = np.full((1, data.width), np.nan)
    axes.imshow(np.concatenate([tables[0], gap, tables[1]]), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for top, table in zip((0, len(BASES) + 1), tables, strict=True):
        for (row, column), chance in np.ndenumerate(table):
            if chance >= 0.1:
                ink = "white" if chance > 0.6 else "black"
                axes.text(column, top + row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=6.5, color=ink)
    names = [f"{base}, {of}" for of in ("learned", "true sites") for base in BASES]
    axes.set_yticks([i + (i >= len(BASES)) for i in range(len(names))], names, fontsize=8)
    axes.set_xticks(range(data.width), [str(j + 1) for j in range(data.width)], fontsize=7)
    axes.set_xlabel("base of the motif", fontsize=9)
    axes.set_title("the motif's profile in percent (below 10: no number)", fontsize=9)

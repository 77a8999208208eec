"""The picture of `benchmarks/relaxations.py`: the discrete ELBO over the temperature of each relaxation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.pictures import PALETTE

__all__ = ["picture"]


def picture(results: Mapping[str, Any], defaults: Mapping[str, float | None], path: Path) -> None:
    """Write one panel for each program: the discrete test ELBO over the temperature, the default's mark filled."""
    programs = results["programs"]
    across = min(2, len(programs))
    down = math.ceil(len(programs) / 2)
    figure = Figure(figsize=(6.5 * across, 4.0 * down + 1.0), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (program, rows) in zip(panels, programs.items(), strict=False):
        _panel(axes, program, rows, defaults)
    for axes in panels[len(programs) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=90)


def _panel(axes: Axes, program: str, rows: Mapping[str, Any], defaults: Mapping[str, float | None]) -> None:
    for number, (name, default) in enumerate(defaults.items()):
        runs = rows.get(name, {})
        colour = PALETTE[number % len(PALETTE)]
        if default is None:
            for one in runs.values():
                axes.axhline(one["elbo"], color="0.4", linestyle=":", label=name)
            continue
        points = sorted((float(t), one["elbo"]) for t, one in runs.items())
        style = "-" if number < len(PALETTE) else "--"
        axes.plot([t for t, _ in points], [e for _, e in points], style, color=colour, label=name, linewidth=1.2)
        for t, elbo in points:
            axes.plot(t, elbo, "o", color=colour, markerfacecolor=colour if t == default else "white", markersize=5)
    axes.set_xscale("log")
    axes.set_title(program, fontsize=10)
    axes.set_xlabel("temperature (filled: the default)")
    axes.set_ylabel("discrete test ELBO, nats an image")

"""The picture of `benchmarks/relaxations.py`: discrete ELBOs over the temperature, and on codes of 32 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.reports.pictures import PALETTE

__all__ = ["picture"]

MARKS = "os^vD"
GRIDS = ("32 x 2", "16 x 4", "11 x 8", "8 x 16")
"""The programs that share a panel: codes of 32 or 33 bits."""
SHOWN = 12.0
"""Nats below the best that a panel shows."""


def picture(results: Mapping[str, Any], defaults: Mapping[str, float | None], path: Path) -> None:
    """Write a panel for each program over the temperature, and one for those of `GRIDS`, by their categories.

    `defaults` maps each relaxation's name to its temperature, None for what has no temperature.
    """
    programs = results["programs"]
    swept = {n: rows for n, rows in programs.items() if n not in GRIDS}
    grid = {n: rows for n, rows in programs.items() if n in GRIDS}
    count = len(swept) + bool(grid)
    figure = Figure(figsize=(5.6 * count, 6.2), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, (program, rows) in zip(panels, swept.items(), strict=False):
        _over_temperatures(axes, program, rows, defaults)
    if grid:
        _over_categories(panels[-1], grid, defaults)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=85)


def _style(number: int) -> dict[str, Any]:
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": "-" if number < len(PALETTE) else "--",
        "marker": MARKS[number % len(MARKS)],
        "markersize": 5,
        "linewidth": 1.2,
    }


def _over_temperatures(axes: Axes, program: str, rows: Mapping[str, Any], defaults: Mapping[str, float | None]) -> None:
    for number, (name, default) in enumerate(defaults.items()):
        runs = rows.get(name, {})
        if default is None:
            for one in runs.values():
                axes.axhline(one["elbo"], color="0.4", linestyle=":", label=name)
        elif runs:
            points = sorted((float(t), one["elbo"]) for t, one in runs.items())
            style = _style(number)
            axes.plot([t for t, _ in points], [e for _, e in points], label=name, markerfacecolor="white", **style)
            at = [(t, e) for t, e in points if t == default]
            axes.plot([t for t, _ in at], [e for _, e in at], **{**style, "linestyle": ""})
    _leave_out_far_below(axes, {n: [one["elbo"] for one in runs.values()] for n, runs in rows.items()})
    axes.set_xscale("log")
    ticks = sorted({float(t) for runs in rows.values() for t in runs if t != "None"})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=60, fontsize=7)
    axes.minorticks_off()
    axes.set_title(f"{program} (filled: default temperature)", fontsize=10)
    axes.set_xlabel("temperature")
    axes.set_ylabel("discrete test ELBO, nats an image")


def _leave_out_far_below(axes: Axes, drawn: Mapping[str, Sequence[float]]) -> None:
    """End the panel some nats below the best, and say what is below that."""
    highest = {name: max(heights) for name, heights in drawn.items() if heights}
    best = max(highest.values())
    far = {name: height for name, height in highest.items() if height < best - SHOWN}
    if far:
        axes.set_ylim(best - SHOWN, best + 0.5)
        text = "\n".join(f"below: {name}, {height:.1f} at best" for name, height in far.items())
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=8)


def _over_categories(axes: Axes, grid: Mapping[str, Any], defaults: Mapping[str, float | None]) -> None:
    """By how much each relaxation, at its default temperature, is above the one without a temperature."""
    (reference,) = (name for name, default in defaults.items() if default is None)
    order = sorted(grid, key=lambda program: int(program.split("x")[1]))
    drawn: dict[str, list[float]] = {reference: [0.0]}
    for number, (name, default) in enumerate(defaults.items()):
        found = [
            (program, grid[program][name][str(default)]["elbo"] - grid[program][reference]["None"]["elbo"])
            for program in order
            if default is not None and str(default) in grid[program].get(name, {}) and reference in grid[program]
        ]
        if found:
            drawn[name] = [e for _, e in found]
            axes.plot([p for p, _ in found], drawn[name], label=name, **_style(number))
    _leave_out_far_below(axes, drawn)
    axes.axhline(0.0, color="0.4", linestyle=":", label=reference)
    axes.set_title("codes of 32 bits, default temperatures", fontsize=10)
    axes.set_xlabel("variables x categories")
    axes.set_ylabel(f"discrete test ELBO above that of {reference}")

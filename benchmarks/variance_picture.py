"""The picture of `benchmarks/variance.py`: what each estimator's variance costs, in evaluations and in time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.reports.pictures import PALETTE

__all__ = ["picture"]

MARKS = (("guide_x_evaluations", "o", PALETTE[0], "evaluations"), ("guide_x_ms", "D", PALETTE[1], "ms"))


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Write one panel for each network: a row for each estimator, best at equal evaluations on top."""
    across = min(2, len(results))
    down = math.ceil(len(results) / 2)
    rows = max(len(result["measured"]) for result in results.values())
    figure = Figure(figsize=(7.5 * across, (0.33 * rows + 1.6) * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (network, result) in zip(panels, results.items(), strict=False):
        _panel(axes, network, result)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    data = next(iter(results.values()))["config"]["data"]
    figure.suptitle(
        f"What a gradient estimate of given precision costs on {data}: variance of the guide's gradient\n"
        "x evaluations of the model (circles), x ms (diamonds); hollow: biased; left is better",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, network: str, result: Mapping[str, Any]) -> None:
    measured = [one for one in reversed(result["measured"]) if one["guide"] > 0]
    for height, one in enumerate(measured):
        ends = [one[key] for key, *_ in MARKS]
        axes.plot(ends, [height, height], color="#BBBBBB", linewidth=1, zorder=1)
        for key, marker, colour, _ in MARKS:
            face = "white" if one["bias"] == "biased" else colour
            axes.plot(one[key], height, marker=marker, color=colour, markerfacecolor=face, markersize=6, zorder=2)
    for key, _, colour, cost in MARKS:
        if not measured:
            continue
        right = measured[-1][key] == max(measured[-1][other] for other, *_ in MARKS)
        axes.annotate(
            f"x {cost}",
            (measured[-1][key], len(measured) - 1),
            xytext=(-4 if right else 4, 7),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom",
            color=colour,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.06)
    axes.set_yticks(range(len(measured)), [one["estimator"] for one in measured], fontsize=8)
    axes.set_title(f"{network}, after {result['config']['steps']} training steps", fontsize=10)
    axes.set_xlabel("(nats per image)² x evaluations, (nats per image)² x ms; log scale", fontsize=9)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

"""What the toys gave, in one file, and one picture of it with the published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.reports.pictures import PALETTE
from pyro_discrete.checkpoints import write_atomically

__all__ = ["PUBLISHED", "picture", "record"]

PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "subsets": {
        "SIMPLE": (0.04, 0.24),
        "SoftSub": (0.08, 0.27),
        "score function": (0.0, 1.0),
        "I-MLE": (0.46, 0.58),
    },
    "matchings": {"T-REINFORCE+": (2000, -9.9), "RELAX": (2000, -9.8), "T-REINFORCE": (2000, -8.4)},
    "rankings": {"exact": (2500, 6.25), "RELAX": (12_000, 6.24), "REBAR": (48_000, 6.22), "REINFORCE": (49_500, 6.90)},
}
"""Read off the papers' figures: of subsets bias and error (cosine distances), else a step and the cost there."""

COUNTERPARTS = {
    "SIMPLE": "straight_through",
    "score function": "reinforce",
    "T-REINFORCE+": "sequential, rloo",
    "T-REINFORCE": "sequential, reinforce",
    "REINFORCE": "reinforce",
    "REBAR": "rebar",
}
"""What a published name is here; of `relax`, each toy has one."""


def record(out: Path, toy: str, found: dict[str, Any]) -> None:
    """Put these rows into `literature.json`, beside those of other toys and of earlier calls; draw the picture anew."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "literature.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[toy] = results.get(toy, {}) | found
    write_atomically(path, json.dumps(results, indent=1) + "\n")
    picture(results, out / "literature.png")


def picture(results: dict[str, Any], path: Path) -> None:
    """A panel a toy: subsets by their cosine distances, the others by their curves; published figures as stars."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    left, *others = figure.subplots(1, 3)
    _subsets(left, results.get("subsets", {}))
    for axes, toy in zip(others, ("matchings", "rankings"), strict=True):
        _curves(axes, toy, results.get(toy, {}))
    others[0].set_xlim(0, 5000)  # nothing changes later
    others[0].set_title("matching of 10 rows: minus the expected pairs (i, i)", fontsize=10)
    others[1].set_title("ranking of 8 items: the expected cost", fontsize=10)
    figure.savefig(path, dpi=80)


def _subsets(axes: Axes, rows: dict[str, Any]) -> None:
    names = [*rows, *(f"{name} (published)" for name in PUBLISHED["subsets"])]
    points = [(row["bias"], row["error"]) for row in rows.values()] + list(PUBLISHED["subsets"].values())
    colours = [PALETTE[0]] * len(rows) + [PALETTE[1]] * len(PUBLISHED["subsets"])
    height = range(len(names))
    axes.hlines(height, [p[0] for p in points], [p[1] for p in points], colors=colours, alpha=0.3)
    axes.scatter([p[0] for p in points], height, marker="o", c=colours, label="of the mean gradient (bias)")
    axes.scatter([p[1] for p in points], height, marker="s", c=colours, label="of one gradient (error)")
    axes.set_yticks(height, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("cosine distance from the exact gradient")
    axes.set_title("subset of 5 of 10 items", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.grid(alpha=0.3)


def _curves(axes: Axes, toy: str, rows: dict[str, Any]) -> None:
    colours = {}
    for number, (name, row) in enumerate(rows.items()):
        colours[name] = PALETTE[number % len(PALETTE)]
        steps = [int(step) for step in row["curve"]]
        axes.plot(steps, list(row["curve"].values()), color=colours[name], label=name)
    ours = COUNTERPARTS | {"RELAX": "sequential, relax" if toy == "matchings" else "relax"}
    for name, (step, cost) in PUBLISHED[toy].items():
        axes.plot(
            step, cost, marker="*", markersize=11, linestyle="none", markeredgecolor="black",
            color=colours.get(ours.get(name, ""), "#666666"), label=f"{name} (published)",
        )  # fmt: skip
    axes.set_xlabel("steps")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)

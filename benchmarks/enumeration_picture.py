"""The picture of `benchmarks/enumeration.py`: time and memory over size, on doubly logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from models.reports.pictures import PALETTE

__all__ = ["picture"]

LABELS = {
    "ours": 'TraceELBO("enumerate"), a step',
    "guided": "the same with a chain in the guide",
    "viterbi": "most probable path, all included",
    "pyro": "Pyro's TraceEnum_ELBO, a step",
}
MARKS = {"ours": "o", "viterbi": "^", "pyro": "D", "guided": "s"}
COLOURS = dict(zip(MARKS, PALETTE, strict=False))
SIZES = {"chain": "length of the chain", "mixture": "points, in minibatches of 1,000"}


def picture(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each program: milliseconds above, megabytes below; grey: linear growth."""
    programs = list(dict.fromkeys(r["program"] for r in results))
    figure = Figure(figsize=(5.2 * len(programs), 7), layout="constrained")
    panels = figure.subplots(2, len(programs), squeeze=False, sharex="col")
    for column, program in enumerate(programs):
        for row, (key, scale, label) in enumerate((("step", 1e3, "ms"), ("memory", 1.0, "MB beyond the imports"))):
            axes = panels[row][column]
            mine = [r for r in results if r["program"] == program]
            for what in dict.fromkeys(r["what"] for r in mine):
                found = [r for r in mine if r["what"] == what]
                sizes, heights = [r["size"] for r in found], [max(scale * r[key], 0.1) for r in found]
                axes.plot(sizes, heights, marker=MARKS[what], color=COLOURS[what], label=LABELS[what])
            if program == "chain":
                ours = [r for r in results if (r["program"], r["what"]) == (program, "ours")]
                end = scale * ours[-1][key]
                axes.plot(
                    [r["size"] for r in ours],
                    [end * r["size"] / ours[-1]["size"] for r in ours],
                    color="#BBBBBB",
                    linestyle="--",
                    zorder=0,
                    label="linear",
                )
            axes.set(xscale="log", yscale="log", ylabel=label)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 1.0), max(high, 100.0))
            if row == 0:
                axes.set_title("hidden Markov model, 4 states" if program == "chain" else "mixture of 4 Gaussians")
                axes.legend(fontsize=8)
            else:
                axes.set_xlabel(SIZES[program])
    figure.savefig(path, dpi=90)

"""Graphs by search, which the latent graph is put beside: greedy equivalence search, and the PC algorithm.

    python -m benchmarks.learning.graph_searches --data erdos-renyi-10,sachs --data-dir FOLDER

Needs the extra `searches` (the package causal-learn). What they give is an equivalence class: an edge of either
direction counts half in each.
"""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from models.data.catalogue import load_data
from models.data.tables import Variables
from models.programs.structured.structure import DirectedGraph
from models.runs.graphs import area_under_curve, hamming_distance, held_out

__all__ = ["SEARCHES", "search"]

SEARCHES = {"ges": "greedy equivalence search by BIC", "pc": "PC by Fisher's z, level 0.05"}
app = typer.Typer(add_completion=False)


def search(name: str, data: Variables) -> tuple[Tensor, Tensor]:
    """Scores `[variables, variables]` of i acting on j: 1, 0, or 1/2 in both directions; and one graph of the class.

    - `name`: one of `SEARCHES`, on the rows to train on.

    Source: Chickering (2002), Optimal structure identification with greedy search; Spirtes, Glymour and Scheines
    (2000), Causation, prediction, and search; both as causal-learn has them.
    """
    pc: Any = import_module("causallearn.search.ConstraintBased.PC").pc
    ges: Any = import_module("causallearn.search.ScoreBased.GES").ges
    pdag2dag: Any = import_module("causallearn.utils.PDAG2DAG").pdag2dag
    table = data.train[0].double().numpy()
    # A one-variable-at-a-time progress bar is of no use here.
    found: Any = ges(table)["G"] if name == "ges" else pc(table, 0.05, "fisherz", show_progress=False).G
    return _directed(found.graph), (_directed(pdag2dag(found).graph) == 1).float()


def _directed(marks: Any) -> Tensor:
    """Of causal-learn's end marks: -1 at `[i, j]` and 1 at `[j, i]` is an edge from i to j; others go neither way."""
    ends = torch.as_tensor(marks)
    there = ends != 0
    forward = (ends == -1) & (ends.mT == 1)
    return torch.where(there & ~forward & ~forward.mT, 0.5, forward.float())


@app.command()
def main(
    data: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "erdos-renyi-10,scale-free-10",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of Sachs' data, if the package cdt is absent.")] = None,
) -> None:
    """Print a line a search and data set; held-out rows by `models.runs.graphs.held_out`, for a graph of the class."""
    for name in data.split(","):
        variables = load_data(name, data_dir if name.startswith("sachs") else None)
        if not isinstance(variables, Variables):
            raise typer.BadParameter(f"{name} holds {variables.elements}, tables of variables are expected.")
        linear = DirectedGraph(len(variables.names))
        rows = {"no edges": (torch.zeros_like(variables.graph.float()),) * 2}
        if not name.startswith("sachs"):  # whose known edges have a cycle
            rows["the true graph"] = (variables.graph.float(),) * 2
        seconds = dict.fromkeys(rows, 0.0)
        for one in SEARCHES:
            start = time.process_time()
            rows[one] = search(one, variables)
            seconds[one] = time.process_time() - start
        for one, (chances, graph) in rows.items():
            print(
                f"{name}, {one}: AUROC {area_under_curve(chances, variables.graph):.3f}, undirected "
                f"{area_under_curve(chances, variables.graph, directed=False):.3f}, Hamming distance "
                f"{hamming_distance(chances, variables.graph):g}, a test row "
                f"{held_out(linear, variables, graph.unsqueeze(0)):.3f} nats, {seconds[one]:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    app()

"""Graphs by search, which the latent graph is put beside: greedy equivalence search, the PC algorithm, and NOTEARS.

    python -m benchmarks.learning.graph_searches --data erdos-renyi-10,sachs --data-dir FOLDER

Needs the extra `searches` (the packages causal-learn and gcastle). What they give, but for NOTEARS, is an equivalence
class: an edge of either direction counts half in each.
"""

from __future__ import annotations

import logging
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

__all__ = ["SEARCHES", "one_of_class", "search"]

SEARCHES = {
    "ges": "causal-learn's greedy equivalence search by BIC",
    "pc": "causal-learn's PC by Fisher's z, level 0.05",
    "castle-ges": "the same of gcastle",
    "castle-pc": "the same of gcastle",
    "castle-notears": "gcastle's NOTEARS: least squares with a penalty, continuous, weights below 0.3 left out",
}
app = typer.Typer(add_completion=False)


def search(name: str, data: Variables) -> tuple[Tensor, Tensor | None]:
    """Scores `[variables, variables]` of i acting on j: 1, 0, or 1/2 in both directions; and one graph of the class.

    Constraints that contradict each other may leave no acyclic graph, and None.

    - `name`: one of `SEARCHES`, on the rows to train on.

    Source: Chickering (2002), Optimal structure identification with greedy search; Spirtes, Glymour and Scheines
    (2000), Causation, prediction, and search; Zheng and others (2018), DAGs with NO TEARS; as the packages have them.
    """
    table = data.train[0].double().numpy()
    if name.startswith("castle-"):
        edges = _by_castle(name, table)
    elif name == "ges":
        edges = _either_way(import_module("causallearn.search.ScoreBased.GES").ges(table)["G"])
    else:  # a one-variable-at-a-time progress bar is of no use here
        pc: Any = import_module("causallearn.search.ConstraintBased.PC").pc
        edges = _either_way(pc(table, 0.05, "fisherz", show_progress=False).G)
    graph = one_of_class(edges)
    return torch.where(edges & edges.mT, 0.5, edges.float()), None if graph is None else graph.float()


def _either_way(found: Any) -> Tensor:
    """Of causal-learn's marks: -1 at `[i, j]` and 1 at `[j, i]` is an edge from i to j; others have no direction."""
    ends = torch.as_tensor(found.graph)
    return (ends != 0) & ~((ends == 1) & (ends.mT == -1))


def _by_castle(name: str, table: Any) -> Tensor:
    logging.getLogger().addHandler(logging.NullHandler())  # else the package sets up everyone's log, and tells all
    dtype = torch.get_default_dtype()
    try:
        algorithms: Any = import_module("castle.algorithms")  # which makes float64 everyone's default
        kinds = {"ges": algorithms.GES, "pc": algorithms.PC, "notears": algorithms.Notears}
        search = kinds[name.removeprefix("castle-")]()
        search.learn(table)
    finally:
        torch.set_default_dtype(dtype)
    return torch.as_tensor(search.causal_matrix) != 0


def one_of_class(edges: Tensor) -> Tensor | None:
    """An acyclic graph with these edges, and without a new collider; None if there is none.

    - `edges` `[n, n]`, bool: whether one leads from i to j; both ways where its direction is open.

    Source: Dor and Tarsi (1992), A simple algorithm to construct a consistent extension of a partially oriented graph.

    >>> chain = torch.tensor([[False, True, False], [False, False, True], [False, True, False]])  # 0 -> 1 - 2
    >>> one_of_class(chain).nonzero().tolist()
    [[0, 1], [1, 2]]
    """
    left, graph = edges.clone(), edges & ~edges.mT
    nodes, own = list(range(len(edges))), torch.eye(len(edges), dtype=torch.bool)
    while nodes:
        near = left | left.mT
        last = next((x for x in nodes if _may_be_last(left, near | own, x)), None)
        if last is None:
            return None
        graph[left[last] & left[:, last], last] = True
        left[last] = left[:, last] = False
        nodes.remove(last)
    return graph


def _may_be_last(left: Tensor, near: Tensor, x: int) -> bool:
    """Whether no edge leads away from x, and its open neighbours are joined to all others of its neighbours."""
    either = left[x] & left[:, x]
    return not (left[x] & ~either).any() and bool((near[either] | ~near[x]).all())


@app.command()
def main(
    data: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "erdos-renyi-10,scale-free-10",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of Sachs' data, if the package cdt is absent.")] = None,
    searches: Annotated[str, typer.Option(help="Names separated by commas.")] = ",".join(SEARCHES),
) -> None:
    """Print a line a search and data set; held-out rows by `models.runs.graphs.held_out`, for a graph of the class."""
    for unknown in set(searches.split(",")) - SEARCHES.keys():
        raise typer.BadParameter(f"{unknown} is none of {', '.join(SEARCHES)}.")
    for name in data.split(","):
        variables = load_data(name, data_dir if name.startswith("sachs") else None)
        if not isinstance(variables, Variables):
            raise typer.BadParameter(f"{name} holds {variables.elements}, tables of variables are expected.")
        linear = DirectedGraph(len(variables.names))
        truth = variables.graph.float()
        nothing = torch.zeros_like(truth)
        rows: dict[str, tuple[Tensor, Tensor | None]] = {"no edges": (nothing, nothing)}
        if not name.startswith("sachs"):  # whose known edges have a cycle
            rows["the true graph"] = (truth, truth)
        seconds = dict.fromkeys(rows, 0.0)
        for one in searches.split(","):
            start = time.process_time()
            rows[one] = search(one, variables)
            seconds[one] = time.process_time() - start
        for one, (chances, graph) in rows.items():
            row = "none, no acyclic graph" if graph is None else f"{held_out(linear, variables, graph[None]):.3f} nats"
            print(
                f"{name}, {one}: AUROC {area_under_curve(chances, variables.graph):.3f}, undirected "
                f"{area_under_curve(chances, variables.graph, directed=False):.3f}, Hamming distance "
                f"{hamming_distance(chances, variables.graph):g}, a test row {row}, {seconds[one]:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    app()

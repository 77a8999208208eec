"""`structure`: small graphs against the exact posterior, Sachs' proteins against pairs in a random order.

    python -m benchmarks.learning.from_data.structure --estimator rloo --particles 512 --steps 2000 --lr 0.03

The command makes one run of each seed and says how far it ends from the exact posterior, without a mark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.learning.from_data.line import Line
from models.data.tables import Variables, load_sachs, simulated_graph
from models.programs.structured.structure import DirectedGraph
from models.runs.evaluation import isolated
from models.runs.graphs import area_under_curve, draw_graphs, exact_posterior, guide_posterior
from pyro_discrete import TraceELBO, fit

__all__ = ["MARKS", "apart", "fitted", "lines"]

MARKS = {3: 0.02, 4: 0.05}
"""Total variation from the exact posterior, of graphs of so many variables: set before the runs below were made."""
ROWS = {3: 30, 4: 30}
"""Few, so that the posterior is not one graph."""
RUNS = {
    3: {"enumerate": (1, 200, 0.1), "rloo": (512, 400, 0.03)},
    4: {"enumerate": (1, 200, 0.1), "rloo": (4096, 400, 0.1)},
}
"""Particles, steps, and the rate from which the run starts, by the number of variables."""
PARTS = 12
"""Of each of the guide's mixtures."""
SACHS_STEPS, SACHS_PARTICLES = 300, 16
app = typer.Typer(add_completion=False)


def fitted(
    data: Variables, estimator: str, particles: int, steps: int, lr: float, categories: int, seed: int
) -> DirectedGraph:
    """A linear program trained with a rate that falls to zero along a half cosine."""
    with isolated(seed):
        program = DirectedGraph(len(data.names), categories)
        fit(
            program.model,
            program.guide,
            data.train,
            TraceELBO(estimator, num_particles=particles),
            lr=lr,
            scheduler=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
            steps=steps,
            batch_size=1,
            progress=False,
        )
    return program


def apart(data: Variables, estimator: str, particles: int, steps: int, lr: float, seed: int) -> float:
    """Total variation between the trained guide's graphs and the exact posterior."""
    program = fitted(data, estimator, particles, steps, lr, PARTS, seed)
    difference = guide_posterior(program, data.train[0]) - exact_posterior(program, data.train[0])
    return float(difference.abs().sum() / 2)


def lines(seed: int = 0, data_dir: Path | None = None) -> Iterator[Line]:
    """Two estimators on three and four variables, and Sachs' data, from `data_dir` if the package cdt is absent.

    Raises `DataError` where these are not installed, after the lines of the others.
    """
    for variables, mark in MARKS.items():
        data = simulated_graph("erdos-renyi", variables, rows=ROWS[variables])
        for estimator, (particles, steps, lr) in RUNS[variables].items():
            total = apart(data, estimator, particles, steps, lr, seed)
            claim = f"posterior over the graphs of {variables} variables, {estimator}"
            yield Line("structure", claim, f"total variation at most {mark}", f"{total:.4f}", total <= mark, total)
    yield _sachs(seed, data_dir)


def _sachs(seed: int, data_dir: Path | None) -> Line:
    """Pairs in a random order score 0.5, with the standard error of the Mann-Whitney statistic."""
    data = load_sachs(data_dir)
    n, edges = len(data.names), len(data.edges)
    others = n * (n - 1) // 2 - edges
    mark = 0.5 + math.sqrt((edges + others + 1) / (12 * edges * others))
    program = fitted(data, "rloo", SACHS_PARTICLES, SACHS_STEPS, 0.02, 4, seed)
    score = area_under_curve(draw_graphs(program, data)[1], data.graph, directed=False)
    own = f"at least {mark:.3f}, a random order's and its error"
    return Line("structure", "Sachs' proteins, undirected AUROC", own, f"{score:.3f}", score >= mark, score)


@app.command()
def main(
    estimator: Annotated[str, typer.Option(help="A name.")],
    particles: Annotated[int, typer.Option(help="Of a step.")],
    steps: Annotated[int, typer.Option(help="Of each run.")],
    lr: Annotated[float, typer.Option(help="Adam's rate at the start; it falls to zero.")],
    variables: Annotated[int, typer.Option(help="3 or 4.")] = 4,
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0",
) -> None:
    """Print the total variation from the exact posterior after a run of each seed, and its processor time."""
    data = simulated_graph("erdos-renyi", variables, rows=ROWS[variables])
    for seed in map(int, seeds.split(",")):
        start = time.process_time()
        total = apart(data, estimator, particles, steps, lr, seed)
        print(f"seed {seed}: total variation {total:.4f}, {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    app()

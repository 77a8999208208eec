"""The Plackett-Luce toy of Gadetsky et al. (2020): a ranking whose matrix is near one that is almost uniform.

    python -m benchmarks.literature.rankings --out benchmarks/results

Eight items; the cost of a ranking is the squared distance of its permutation matrix from one with entries 1 / 8, made
larger by 0.05 on the diagonal and smaller by 0.05 / 7 off it. Adam, rate 0.01, from equal logits. What is written down
is the exact expected cost, a sum over the 40,320 rankings; the identity's is the least.

Source: Gadetsky, Struminsky, Robinson, Quadrianto and Vetrov (2020), Low-variance black-box gradient estimates for the
Plackett-Luce distribution; settings from the authors' toy_experiment.py and critics.py
(github.com/agadetsky/pytorch-pl-variance-reduction).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pyro
import torch
import typer
from torch import Tensor

from benchmarks.literature.results import record
from benchmarks.literature.training_curves import Run, curve, shown
from pyro_discrete import REBAR, RELAX
from pyro_discrete.distributions import PlackettLuce

ITEMS, EPSILON = 8, 0.05

RUNS = {
    "rloo": Run(lambda: "rloo", 3, 50_000),
    "reinforce": Run(lambda: "reinforce", 1, 50_000),
    "relax": Run(lambda: RELAX(temperature=1.0, hidden=32), 1, 20_000),
    "rebar": Run(lambda: REBAR(temperature=1.0), 1, 50_000),
}
"""Temperature, hidden units, eta = 1 and one draw a step are the paper's; it has no leave-one-out."""


def target(items: int) -> Tensor:
    """The doubly stochastic matrix that no permutation reaches."""
    matrix = torch.full((items, items), 1 / items - EPSILON / (items - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(1 / items + EPSILON)


def pair(items: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Model and guide: the matrix is looked up by the ranking, hard or soft."""
    matrix, eye, equal = target(items), torch.eye(items, dtype=torch.float64), torch.zeros(items, dtype=torch.float64)

    def model() -> None:
        order = pyro.sample("order", PlackettLuce(equal))
        pyro.factor("reward", -(eye[order] - matrix).square().sum((-1, -2)))

    def guide() -> None:
        pyro.sample("order", PlackettLuce(pyro.param("logits", lambda: equal.clone())))

    return model, guide


def expected_cost(items: int) -> Callable[[Tensor], float]:
    """The expected cost at logits, by a sum over all rankings."""
    every = PlackettLuce(torch.zeros(items)).enumerate_support()
    cost = (torch.eye(items, dtype=torch.float64)[every] - target(items)).square().sum((-1, -2))
    return lambda logits: float(PlackettLuce(logits, validate_args=False).log_prob(every).exp() @ cost)


def main(
    out: Annotated[Path, typer.Option(help="Folder of literature.json and literature.png.")],
    estimators: Annotated[str, typer.Option(help="Of those in the table.")] = ",".join(RUNS),
    scale: Annotated[float, typer.Option(help="Of the numbers of steps.")] = 1.0,
    items: Annotated[int, typer.Option(help="Items to rank.")] = ITEMS,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train by each estimator, print its curve, and keep it."""
    torch.set_num_threads(1)
    cost = expected_cost(items)
    least = float((torch.eye(items, dtype=torch.float64) - target(items)).square().sum())
    print(f"least {least:.3f}, at the start {cost(torch.zeros(items, dtype=torch.float64)):.3f}", flush=True)
    for name in estimators.split(","):
        found = curve(pair(items), RUNS[name].scaled(scale), cost, rate=0.01, seed=seed)
        print(f"{name}: {shown(found)}", flush=True)
        record(out, "rankings", {name: found})


if __name__ == "__main__":
    typer.run(main)

"""The matching toy of Struminsky et al. (2021): ten rows and columns, the reward being the number of pairs (i, i).

    python -m benchmarks.literature.matchings --out benchmarks/results

Adam, rate 0.01, from equal logits, three draws a step. What is written down is minus the mean reward: of a
`GibbsMatching` exact, by its marginals, of a `SequentialMatching` the mean of 1,000 draws; the least is -10.

Source: Struminsky, Gadetsky, Rakitin, Karpushkin and Vetrov (2021), Leveraging recursive Gumbel-max trick for
approximate inference in combinatorial spaces; settings from the authors' matching/README.md
(github.com/RakitinDen/pytorch-recursive-gumbel-max-trick).
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
from pyro_discrete import RELAX
from pyro_discrete.distributions import GibbsMatching, SequentialMatching, Structure

ROWS, DRAWS, CHECKED = 10, 3, 1000

RUNS: dict[str, tuple[type[Structure], Run]] = {
    "sequential, rloo": (SequentialMatching, Run(lambda: "rloo", DRAWS, 15_000)),
    "sequential, reinforce": (SequentialMatching, Run(lambda: "reinforce", DRAWS, 15_000)),
    "sequential, relax": (SequentialMatching, Run(lambda: RELAX(black_box=True, hidden=32), DRAWS, 5_000)),
    "sequential, straight_through_gumbel_softmax": (
        SequentialMatching,
        Run(lambda: "straight_through_gumbel_softmax", DRAWS, 5_000),
    ),
    "Gibbs, rloo": (GibbsMatching, Run(lambda: "rloo", DRAWS, 5_000)),
    "Gibbs, straight_through": (GibbsMatching, Run(lambda: "straight_through", DRAWS, 5_000)),
}
"""`rloo`, `reinforce` and a black box `relax` are the counterparts of the paper's T-REINFORCE+, T-REINFORCE, RELAX."""


def pair(structure: type[Structure], rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Model and guide: how many rows have the column of their own number."""
    own, equal = torch.arange(rows), torch.zeros(rows, rows)

    def model() -> None:
        matching = pyro.sample("matching", structure(equal))
        pyro.factor("reward", (matching == own).to(equal).sum(-1))

    def guide() -> None:
        pyro.sample("matching", structure(pyro.param("logits", lambda: equal.clone())))

    return model, guide


def expected_cost(structure: type[Structure]) -> Callable[[Tensor], float]:
    """Minus the expected reward at logits."""

    def cost(logits: Tensor) -> float:
        found = structure(logits)
        if structure.defines("marginals"):
            return -float(found.marginals().diagonal().sum())
        return -float((found.sample((CHECKED,)) == torch.arange(len(logits))).sum(-1).float().mean())

    return cost


def main(
    out: Annotated[Path, typer.Option(help="Folder of literature.json and literature.png.")],
    names: Annotated[str, typer.Option(help="Of the runs, between semicolons.")] = ";".join(RUNS),
    scale: Annotated[float, typer.Option(help="Of the numbers of steps.")] = 1.0,
    rows: Annotated[int, typer.Option(help="Of the matching.")] = ROWS,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train each run, print its curve, and keep it."""
    torch.set_num_threads(1)
    for name in names.split(";"):
        structure, run = RUNS[name]
        found = curve(pair(structure, rows), run.scaled(scale), expected_cost(structure), rate=0.01, seed=seed)
        print(f"{name}: {shown(found)}", flush=True)
        record(out, "matchings", {name: found})


if __name__ == "__main__":
    typer.run(main)

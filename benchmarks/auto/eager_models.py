"""Times of an eager step on the programs of models/, beside Pyro's Trace_ELBO at as many particles: no compilation.

Both sides estimate by plain score functions and step with `pyro.optim.Adam`; they take turns in one process. Times are
the processor's, of one thread, in ms.

    python -m benchmarks.auto.eager_models
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import SVI, Trace_ELBO

from benchmarks.auto.auto_models import PROGRAMS
from benchmarks.steps.step_rows import Here
from models.data.catalogue import BatchStream, load_data
from models.runs.config import build_program, configure
from models.runs.evaluation import isolated
from pyro_discrete import TraceELBO

__all__ = ["rows_of"]


def rows_of(program: str, settings: dict[str, Any], particles: int) -> dict[str, Here]:
    """Ways to make a step of a program of models/ on one batch that stays: ours, and Pyro's."""
    config = configure(program, "reinforce", particles=particles, **settings)
    data = load_data(config.data)

    def svi(loss: Any) -> Callable[[], Any]:
        with isolated(config.seed):
            built = build_program(config, data)
            x = BatchStream(data.train, config.batch_size, config.binarisation, config.seed).next_batch()
        return partial(SVI(built.model, built.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss).step, x)

    together: dict[str, Any] = {"vectorize_particles": True, "max_plate_nesting": 1} if particles > 1 else {}
    losses = {
        "TraceELBO": TraceELBO("reinforce", num_particles=particles),
        "Trace_ELBO": Trace_ELBO(num_particles=particles, **together),
    }
    rows = {name: Here(name, partial(svi, loss)) for name, loss in losses.items()}
    for row in rows.values():
        row.turn(3)
    return rows


def main(
    turns: Annotated[int, typer.Option(help="How often each way is measured.", min=1)] = 40,
    steps: Annotated[int, typer.Option(help="Steps in each turn.", min=1)] = 5,
    only: Annotated[str, typer.Option(help="Programs, by the beginning of their name, separated by commas.")] = "",
) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    print("| program | particles | `TraceELBO`, ms | `Trace_ELBO`, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name, (program, settings) in PROGRAMS.items():
        if only and not name.startswith(tuple(only.split(","))):
            continue
        for particles in (1, 2, 10):
            rows = rows_of(program, settings, particles)
            for turn in range(turns):
                for row in rows.values() if turn % 2 == 0 else reversed(rows.values()):
                    row.measure(steps)
            ours, theirs = (row.median for row in rows.values())
            print(f"| {name} | {particles} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)

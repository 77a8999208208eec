"""Times of a whole training step, optimiser included: this package, Pyro, by hand, NumPyro, Storchastic.

Every way of making a step is set up in one run, on one batch that stays; then they take turns. Times are the
processor's, of one thread, in ms: another program on the same cores lengthens them less than the clock's.

    pip install numpyro funsor optax            # in an environment of its own: --numpyro PATH/bin/python
    pip install --no-deps storchastic entmax    # into a folder of its own: --storchastic FOLDER
    python -m benchmarks.steps.step_time --numpyro ... --storchastic ... --out benchmarks/results/step_time.json
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.steps.step_rows import Row, Worker, rows_here
from benchmarks.steps.step_shapes import SHAPES, Shape

OURS = ("fit, compile=True", "SVI.step, compile=True", "fit, eager", "SVI.step, eager")
TARGETS = {
    "Pyro Trace_ELBO": (0.36, 0.6),
    "Pyro TraceGraph_ELBO": (0.2, 0.35),
    "Pyro TraceEnum_ELBO": (0.5, None),
    "by hand, eager": (0.6, 1.0),
    "by hand, torch.compile": (0.9, None),
    "NumPyro": (1.0, None),
    "Storchastic": (0.3, None),
}
"""The ratio of our time to theirs that is aimed at, through `fit` and through `SVI.step`."""


def measure(shape: Shape, key: str, turns: int, steps: int, compiled: bool, workers: dict[str, str]) -> dict[str, Any]:
    """Median times of every way by its name."""
    rows: list[Row] = rows_here(shape, compiled)
    others: list[Worker] = []
    if "numpyro" in workers:
        others.append(Worker("NumPyro", workers["numpyro"], "numpyro_worker.py", shape, key))
    if "storchastic" in workers and not shape.exact:
        others.append(
            Worker("Storchastic", sys.executable, "storchastic_worker.py", shape, key, workers["storchastic"])
        )
    rows += others
    for turn in range(turns):
        for row in rows if turn % 2 == 0 else reversed(rows):
            row.measure(steps)
    for worker in others:
        worker.close()
    return {
        "title": shape.title,
        "ms": {row.name: row.median for row in rows},
        "steps": turns * steps,
        "versions": [worker.version for worker in others],
    }


def table(found: dict[str, Any]) -> str:
    """A shape's times, and the ratios of ours to theirs, as Markdown."""
    ms: dict[str, float] = found["ms"]
    ours = [name for name in OURS if name in ms]
    lines = [
        f"| {found['title']} | ms | {' | '.join(f'{name} / this' for name in ours)} |",
        f"| --- | --- |{' --- |' * len(ours)}",
    ]
    for name, time in ms.items():
        ratios = ["" if name in ours else f"{ms[mine] / time:.2f}" for mine in ours]
        aimed = TARGETS.get(name, (None, None))
        for index, mine in enumerate(ours):
            target = {"fit, compile=True": aimed[0], "SVI.step, compile=True": aimed[1]}.get(mine)
            if target is not None and name not in ours:
                ratios[index] += f" (aim {target})"
        lines.append(f"| {name} | {time:.2f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main(
    shapes: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(SHAPES),
    turns: Annotated[int, typer.Option(help="How often each way is measured.")] = 20,
    steps: Annotated[int, typer.Option(help="Steps in each turn.")] = 10,
    compiled: Annotated[bool, typer.Option(help="Time compiled steps as well.")] = True,
    numpyro: Annotated[str | None, typer.Option(help="A Python that has NumPyro.")] = None,
    storchastic: Annotated[str | None, typer.Option(help="A folder that holds Storchastic.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the figures; shapes that it holds are renewed.")] = None,
) -> None:
    """Measure, print tables, and write the figures."""
    torch.set_num_threads(1)
    workers = {k: v for k, v in (("numpyro", numpyro), ("storchastic", storchastic)) if v is not None}
    results: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    for key in shapes.split(","):
        print(key, file=sys.stderr, flush=True)
        results[key] = measure(SHAPES[key], key, turns, steps, compiled, workers)
        results[key]["versions"] += [f"PyTorch {torch.__version__}, Python {platform.python_version()}, 1 thread"]
        print(table(results[key]) + "\n", flush=True)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""Steps a second of several processes against one, and what they send: where data-parallel training pays.

    python -m benchmarks.learning.ranks --out runs/ranks

Each row is a run of `fit` of its own: one process of one torch thread and of two, and two processes of one thread each,
on a belief network of 200 units (encoder 784-200-200-200, decoder 200-200-200-784), `rloo` with two particles, batches
of random pixels. The rows of a batch size take turns, and of each the least time counts that so many steps in a row
took, so that what else the machine does weighs little.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer

from models.programs.sbn import SigmoidBeliefNetwork
from pyro_discrete import FitState, TraceELBO, fit
from pyro_discrete.checkpoints import write_atomically

__all__ = ["app", "measured"]

ROWS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, one thread": (2, 1)}
"""Processes, and threads of each."""
PIXELS, UNITS = 784, 200
app = typer.Typer(add_completion=False)


class Clock:
    """A callback that notes the processor time of this process, all threads together, in the middle and at the end."""

    def __init__(self, every: int) -> None:
        self.every, self.seconds = every, list[float]()

    def __call__(self, state: FitState) -> None:
        self.seconds.append(time.process_time())


def measured(batch: int, steps: int, compile: Any = "graph") -> dict[str, Any]:
    """A run in this process, of a launcher or alone: milliseconds of a step, by the clock (the least) and of the
    processor, and the bytes that it hands over in one."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = torch.bernoulli(torch.full((10 * batch, PIXELS), 0.3))
    network = SigmoidBeliefNetwork(torch.full((PIXELS,), 0.3), (UNITS,), (UNITS, UNITS))
    every, clock = max(1, steps // 20), Clock(max(1, steps // 2))
    result = fit(
        network.model,
        network.guide,
        data,
        TraceELBO("rloo", num_particles=2, compile=compile),
        lr=3e-4,
        steps=steps,
        batch_size=batch,
        seed=0,
        log_every=every,
        callbacks=[clock],
        progress=False,
    )
    times = result.history["ms_per_step"].values[2:]  # the first steps plan and capture
    numbers = sum(parameter.numel() for parameter in result.parameters.values())
    processor = 1000 * (clock.seconds[-1] - clock.seconds[0]) / (steps - clock.every)
    found = {"ms": float(min(times)), "processor_ms": processor, "bytes": result.bytes_per_step, "parameters": numbers}
    return {**found, "ranks": result.ranks, "rank": result.rank, "loss": result.loss}


@app.command(hidden=True)
def worker(batch: int, steps: int, threads: int) -> None:
    """One run, in a process of its own."""
    torch.set_num_threads(threads)
    found = measured(batch, steps)
    if found["rank"] == 0:
        print(json.dumps(found))


def _started(batch: int, steps: int, processes: int, threads: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "benchmarks.learning.ranks", "worker", str(batch), str(steps), str(threads)]
    env = {**os.environ, **address, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
    runs = [
        subprocess.Popen(command, env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    said = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise SystemExit("A process failed; its message is above.")
    return json.loads(said[0].splitlines()[-1])


@app.command()
def compare(
    batches: Annotated[str, typer.Option(help="Batch sizes, of all processes together.")] = "100,400,1600",
    steps: Annotated[int, typer.Option(help="Of each run.")] = 200,
    repeats: Annotated[int, typer.Option(help="Runs of each row.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/ranks"),
) -> None:
    """Measure all rows, in turns."""
    results: dict[str, dict[str, Any]] = {}
    for batch in map(int, batches.split(",")):
        found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
        for _ in range(repeats):
            for row, (processes, threads) in ROWS.items():
                found[row].append(_started(batch, steps, processes, threads))
        best = {row: min(runs, key=lambda run: run["ms"]) for row, runs in found.items()}
        results[str(batch)] = {row: {**run, "steps_per_second": 1000 / run["ms"]} for row, run in best.items()}
        for row, run in results[str(batch)].items():
            print(
                f"batch {batch}, {row}: {run['steps_per_second']:.1f} steps a second, {run['processor_ms']:.1f} ms of "
                f"the processor and {run['bytes']} bytes a step and process",
                flush=True,
            )
    write_atomically(out / "ranks.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app()

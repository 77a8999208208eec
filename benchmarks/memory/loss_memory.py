"""Peak memory of a test likelihood, `TraceIWELBO(...).loss()`, against the particles: in blocks, and all at once.

784-200 linear, batch 20; one process a point. Memory is the process's peak above what it held after a loss of two
particles; times are the processor's, of one thread.

    python -m benchmarks.memory.loss_memory --out benchmarks/results
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.steps.step_shapes import Shape
from pyro_discrete import TraceIWELBO
from pyro_discrete.steps import hard_loss as running

__all__ = ["measured", "table"]

SHAPE = Shape("", "binary", 20)
PARTICLES = (10, 100, 1000, 10_000)
AT_ONCE = 1000
"""All at once, no more particles than these are tried: memory is theirs times some 300 KiB."""


def measured(shape: Shape, particles: int, blocks: bool) -> dict[str, float]:
    """Peak memory in MiB, processor seconds, and the bound of the batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    program, x = shape.program(), shape.data()
    TraceIWELBO("vimco", num_particles=2).loss(program.model, program.guide, x)  # loads what a first run loads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    elbo = TraceIWELBO("vimco", num_particles=particles)
    allowed, started = running.AT_ONCE, time.process_time()
    try:
        running.AT_ONCE = allowed if blocks else sys.maxsize
        loss = elbo.loss(program.model, program.guide, x)
    finally:
        running.AT_ONCE = allowed
    taken = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (peak - before) / 1024, "seconds": taken, "bound": -loss / shape.batch}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each number of particles."""
    lines = ["| particles | in blocks, MiB | s | all at once, MiB | s |", "| --- | --- | --- | --- | --- |"]
    for particles, found in results.items():
        cells = [f"{found[way]['mib']:.0f} | {found[way]['seconds']:.2f}" if way in found else "|" for way in WAYS]
        lines.append(f"| {int(particles):,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


WAYS = ("blocks", "at once")


def main(
    out: Annotated[Path, typer.Option(help="Folder of loss_memory.json and loss_memory.md.")],
    only: Annotated[str | None, typer.Option(help="One point, PARTICLES:WAY, as JSON: how points are run.")] = None,
    most: Annotated[int, typer.Option(help="The largest number of particles.", min=10)] = PARTICLES[-1],
) -> None:
    """Measure each point in a process of its own."""
    if only is not None:
        particles, way = only.split(":")
        print(json.dumps(measured(SHAPE, int(particles), way == "blocks")))
        return
    results: dict[str, dict[str, Any]] = {}
    for particles in PARTICLES:
        for way in WAYS:
            if particles > most or (way == "at once" and particles > AT_ONCE):
                continue
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory.loss_memory",
                "--out",
                str(out),
                "--only",
                f"{particles}:{way}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            results.setdefault(str(particles), {})[way] = json.loads(done.stdout.splitlines()[-1])
            print(particles, way, results[str(particles)][way], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "loss_memory.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "loss_memory.md").write_text(table(results))
    typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)

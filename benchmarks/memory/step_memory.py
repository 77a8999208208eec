"""Peak memory of a step against the particles: ours, in chunks, and Pyro's. One process a point.

    python -m benchmarks.memory.step_memory --out benchmarks/results

784-200 linear, batch 100; the loss and its gradient, `rloo` (`reinforce` with one particle), and `vimco` for the bound.
Memory is the process's peak above what it held after a step with two particles on two images, which loads what a first
step loads. Times are the processor's, of one thread.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import Trace_ELBO, TraceGraph_ELBO

from benchmarks.steps.step_shapes import SHAPES
from pyro_discrete import TraceELBO, TraceIWELBO

__all__ = ["PARTICLES", "WAYS", "measured", "table"]

PARTICLES = (1, 10, 100)
CHUNK = 10
SHAPE = SHAPES["linear-100"]


def _ours(particles: int, **settings: Any) -> TraceELBO:
    return TraceELBO("rloo" if particles > 1 else "reinforce", num_particles=particles, **settings)


def _bound(particles: int, **settings: Any) -> TraceIWELBO:
    estimator = "vimco" if particles > 1 else "reinforce"
    return TraceIWELBO(estimator, num_particles=particles, datum_plates="data", **settings)


WAYS: dict[str, Any] = {
    "TraceELBO": _ours,
    'TraceELBO, compile="graph"': lambda particles: _ours(particles, compile="graph"),
    f"TraceELBO, row_chunk={CHUNK}": lambda particles: _ours(particles, row_chunk=CHUNK),
    "TraceIWELBO": _bound,
    f"TraceIWELBO, row_chunk={CHUNK}": lambda particles: _bound(particles, row_chunk=CHUNK),
    "Trace_ELBO, at once": lambda n: Trace_ELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=1),
    "Trace_ELBO, one by one": lambda n: Trace_ELBO(num_particles=n),
    "TraceGraph_ELBO, at once": lambda n: TraceGraph_ELBO(
        num_particles=n, vectorize_particles=True, max_plate_nesting=1
    ),
}


def measured(way: str, particles: int, steps: int = 5) -> dict[str, float]:
    """Peak memory in MiB above what the process held before, over so many steps, and ms of the last one."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    program, x = SHAPE.program(), SHAPE.data()
    WAYS[way](2).loss_and_grads(program.model, program.guide, x[:2])  # loads what a first step loads
    elbo = WAYS[way](particles)
    ctypes.CDLL(None).malloc_trim(0)
    before = _peak()
    times = []
    for _ in range(steps):
        started = time.process_time()
        elbo.loss_and_grads(program.model, program.guide, x)
        times.append(1e3 * (time.process_time() - started))
        program.zero_grad()
    return {"mib": (_peak() - before) / 1024, "ms": times[-1]}  # a captured step's fifth call is its graph alone


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each way: memory and time at each number of particles."""
    columns = list(next(iter(results.values())))
    lines = ["| peak MiB / ms of a step | " + " | ".join(f"{n} particles" for n in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for way, found in results.items():
        cells = [f"{found[n]['mib']:.0f} / {found[n]['ms']:.1f}" for n in columns]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Memory and time against the particles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for number, (way, found) in enumerate(results.items()):
        mine = not way.endswith(("at once", "one by one"))
        style: Any = {"color": f"C{number}", "ls": "-" if mine else "--", "marker": "o" if mine else "s", "ms": 4}
        for panel, key in zip(panels, ("mib", "ms"), strict=True):
            panel.plot([int(n) for n in found], [max(one[key], 0.1) for one in found.values()], label=way, **style)
    for panel, label in zip(panels, ("peak memory of a step, MiB", "ms of a step (processor)"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="particles", ylabel=label)
        panel.grid(alpha=0.3)
    panels[1].legend(
        frameon=False,
        fontsize=8,
        title="solid: this package; dashed: Pyro",
        title_fontsize=8,
        bbox_to_anchor=(1.02, 1.0),
        loc="upper left",
    )
    figure.suptitle("784-200 linear, batch 100: loss and gradient", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(
    out: Annotated[Path, typer.Option(help="Folder of step_memory.json and step_memory.png.")],
    only: Annotated[str | None, typer.Option(help="One point, PARTICLES:WAY, as JSON: how points are run.")] = None,
    most: Annotated[int, typer.Option(help="The largest number of particles.", min=1)] = PARTICLES[-1],
) -> None:
    """Measure each point in a process of its own, print a table and draw a picture."""
    if only is not None:
        particles, way = only.split(":")
        print(json.dumps(measured(way, int(particles))))
        return
    results: dict[str, dict[str, dict[str, float]]] = {way: {} for way in WAYS}
    for way in WAYS:
        for particles in PARTICLES:
            if particles <= most:
                command = [sys.executable, "-m", "benchmarks.memory.step_memory", "--out", str(out)]
                command += ["--only", f"{particles}:{way}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                results[way][str(particles)] = json.loads(done.stdout.splitlines()[-1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "step_memory.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, out / "step_memory.png")
    typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)

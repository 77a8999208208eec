"""Time and peak memory of a step against particles, latents, layers and batch: one process a point, one picture.

The base is 784-200 linear, batch 100, `rloo` with two particles, each axis varied by itself; a step is `fit`'s, on one
fixed batch. Times are the processor's, of one thread; memory is the process's peak above what it held before.

    python -m benchmarks.step_curves --out benchmarks
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.step_shapes import Shape
from pyro_discrete import TraceELBO
from pyro_discrete.batches import TensorBatches, as_arguments
from pyro_discrete.optimisation import build_optimizer
from pyro_discrete.training_loop import FitState, Loop

BASE = Shape("", "binary", 100)
AXES: dict[str, list[int]] = {
    "particles": [2, 4, 16, 64, 256],
    "latents": [10, 100, 1000, 10_000],
    "layers": [1, 2, 3, 4],
    "batch": [10, 100, 1000],
}
MODES: dict[str, bool | str] = {"eager": False, "graph": "graph"}


def point(axis: str, value: int) -> tuple[Shape, int]:
    """The shape and the particles at one point of an axis."""
    if axis == "particles":
        return BASE, value
    if axis == "latents":
        return replace(BASE, latents=(value,)), 2
    if axis == "layers":
        return replace(BASE, latents=(200,) * value), 2
    return replace(BASE, batch=value), 2


def measured(shape: Shape, particles: int, mode: str, seconds: float) -> dict[str, float]:
    """Median ms of a step, and peak memory in MiB above what the process had before the first one."""
    torch.set_num_threads(1)
    program, x = shape.program(), shape.data()
    elbo: Any = TraceELBO("rloo", num_particles=particles, compile=MODES[mode])  # type: ignore[arg-type]
    loop = Loop(
        FitState(program.model, program.guide, elbo),
        TensorBatches(x),
        as_arguments,
        lambda named: build_optimizer("adam", named, 1e-3, None),
        None,
        (None, None),
        (),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loop.begin(None)
    for _ in range(3):
        loop.advance(recorded=False)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1000 * seconds and len(times) < 200):
        started = time.process_time()
        loop.advance(recorded=False)
        times.append(1000 * (time.process_time() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": statistics.median(times), "mib": (peak - before) / 1024}


def picture(results: dict[str, Any], path: Path) -> None:
    """Both quantities against each axis, logarithmically."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(results), figsize=(3.1 * len(results), 5.2), sharey="row", sharex="col")
    panels = panels.reshape(2, len(results))
    for column, (axis, modes) in enumerate(results.items()):
        for mode, marker in zip(MODES, "os", strict=True):
            for row, key in enumerate(("ms", "mib")):
                values = [(int(value), found[key]) for value, found in modes[mode].items()]
                panels[row, column].plot(*zip(*values, strict=True), marker=marker, ms=4, label=mode)
        panels[1, column].set_xlabel(axis)
        for panel in panels[:, column]:
            panel.set_xscale("log" if axis != "layers" else "linear")
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
        if axis == "layers":
            panels[1, column].set_xticks([int(v) for v in modes["eager"]])
    panels[0, 0].set_ylabel("ms a step (processor)")
    panels[1, 0].set_ylabel("peak memory, MiB")
    panels[0, 0].legend(frameon=False)
    figure.suptitle("A step of rloo: 784-200 linear, batch 100, two particles, one axis varied at a time", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(
    out: Annotated[Path, typer.Option(help="Folder of step_curves.json and step_curves.png.")],
    seconds: Annotated[float, typer.Option(help="Of steps at each point.")] = 1.0,
    only: Annotated[str | None, typer.Option(help="One point, AXIS:VALUE:MODE, as JSON: how points are run.")] = None,
    values: Annotated[int, typer.Option(help="So many values of each axis at most.")] = 99,
) -> None:
    """Measure each point in a process of its own, and draw the picture."""
    if only is not None:
        axis, value, mode = only.split(":")
        shape, particles = point(axis, int(value))
        print(json.dumps({**measured(shape, particles, mode, seconds), "shape": asdict(shape)}))
        return
    results: dict[str, Any] = {axis: {mode: {} for mode in MODES} for axis in AXES}
    for axis, along in AXES.items():
        for value in along[:values]:
            for mode in MODES:
                command = [sys.executable, "-m", "benchmarks.step_curves", "--out", str(out)]
                command += ["--seconds", str(seconds), "--only", f"{axis}:{value}:{mode}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                results[axis][mode][str(value)] = {"ms": found["ms"], "mib": found["mib"]}
                print(f"{axis} {value} {mode}: {found['ms']:.2f} ms, {found['mib']:.0f} MiB", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "step_curves.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, out / "step_curves.png")


if __name__ == "__main__":
    typer.run(main)

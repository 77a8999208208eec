"""Time and peak memory of a step against particles, latents, layers, batch and chunks of rows: one process a point.

The base is 784-200 linear, batch 100, `rloo` with two particles, each axis varied by itself; chunks are of 256
particles. A step is `fit`'s, on one fixed batch. Times are the processor's, of one thread; memory is the process's peak
above what it held before.

    python -m benchmarks.steps.step_curves --out benchmarks/results
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

from benchmarks.steps.step_shapes import Shape, training_loop
from pyro_discrete import TraceELBO

BASE = Shape("", "binary", 100)
AXES: dict[str, list[int]] = {
    "particles": [2, 4, 16, 64, 256],
    "latents": [10, 100, 1000, 10_000],
    "layers": [1, 2, 3, 4],
    "batch": [10, 100, 1000],
    "row_chunk": [4, 16, 64, 256],
}
CHUNKED = 256
MODES: dict[str, bool | str] = {"eager": False, "graph": "graph"}


def modes_of(axis: str) -> list[str]:
    """What is measured along an axis: chunks are run eagerly alone."""
    return ["eager"] if axis == "row_chunk" else list(MODES)


def point(axis: str, value: int) -> tuple[Shape, dict[str, Any]]:
    """The shape and the ELBO's settings at one point of an axis."""
    if axis == "particles":
        return BASE, {"num_particles": value}
    if axis == "row_chunk":
        return BASE, {"num_particles": CHUNKED, "row_chunk": value}
    if axis == "latents":
        return replace(BASE, latents=(value,)), {"num_particles": 2}
    if axis == "layers":
        return replace(BASE, latents=(200,) * value), {"num_particles": 2}
    return replace(BASE, batch=value), {"num_particles": 2}


def measured(shape: Shape, settings: dict[str, Any], seconds: float) -> dict[str, float]:
    """Median ms of a step, and peak memory in MiB above what the process had before the first one."""
    torch.set_num_threads(1)
    program, x = shape.program(), shape.data()
    elbo = TraceELBO("rloo", **settings)
    loop = training_loop(program, elbo, x, 1e-3)
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
                values = [(int(value), found[key]) for value, found in modes.get(mode, {}).items()]
                if values:
                    panels[row, column].plot(*zip(*values, strict=True), marker=marker, ms=4, label=mode)
                if axis == "row_chunk" and str(CHUNKED) in results.get("particles", {}).get(mode, {}):
                    whole = results["particles"][mode][str(CHUNKED)][key]
                    panels[row, column].axhline(whole, color=f"C{list(MODES).index(mode)}", ls=":", lw=1)
        panels[1, column].set_xlabel(f"row_chunk of {CHUNKED} (dotted: without)" if axis == "row_chunk" else axis)
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
    axes: Annotated[str, typer.Option(help="Axes that are measured anew, separated by commas.")] = ",".join(AXES),
) -> None:
    """Measure each point in a process of its own, and draw the picture."""
    if only is not None:
        axis, value, mode = only.split(":")
        shape, settings = point(axis, int(value))
        settings |= {"compile": MODES[mode]}
        print(json.dumps({**measured(shape, settings, seconds), "shape": asdict(shape)}))
        return
    kept = out / "step_curves.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for axis in axes.split(","):
        results[axis] = {mode: {} for mode in modes_of(axis)}
        for value in AXES[axis][:values]:
            for mode in modes_of(axis):
                command = [sys.executable, "-m", "benchmarks.steps.step_curves", "--out", str(out)]
                command += ["--seconds", str(seconds), "--only", f"{axis}:{value}:{mode}"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                results[axis][mode][str(value)] = {"ms": found["ms"], "mib": found["mib"]}
                print(f"{axis} {value} {mode}: {found['ms']:.2f} ms, {found['mib']:.0f} MiB", flush=True)
    results = {axis: results[axis] for axis in AXES if axis in results}
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(results, indent=1) + "\n")
    picture(results, out / "step_curves.png")


if __name__ == "__main__":
    typer.run(main)

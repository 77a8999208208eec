"""Where the time of a step goes: what a compiled one is made of, and how many Python calls an eager one makes.

A compiled step's parts are medians of torch's profiler, its whole is the processor's time without it; the rest is the
bookkeeping of a call, the optimiser's Python, and waiting for memory.

    python -m benchmarks.steps.step_parts
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import SVI, Trace_ELBO
from torch.profiler import ProfilerActivity, profile

from benchmarks.steps.step_shapes import DRAWS, SHAPES, Shape, training_loop
from pyro_discrete import TraceELBO

PARTS: dict[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "random numbers": ("aten::uniform_", "aten::multinomial"),
    "fused loops": ("graph_",),
    "Adam": ("aten::_fused_adam_",),
}
"""Beginnings of the names of the operations in each part; none of them is inside another."""


def compiled_step(shape: Shape) -> Callable[[], None]:
    """A step of `fit` with `rloo`, whose fused loops are named in profiles."""
    from torch._inductor import config

    config.cpp.enable_kernel_profile = True
    program = shape.program()
    loop = training_loop(program, TraceELBO("rloo", num_particles=DRAWS, compile=True), shape.data(), 1e-3)
    loop.begin(None)
    return lambda: loop.advance(recorded=False)


def parts_of(step: Callable[[], None], steps: int) -> dict[str, float]:
    """Ms of each part of a step, and of the whole."""
    for _ in range(8):
        step()
    times = []
    for _ in range(steps):
        started = time.process_time()
        step()
        times.append(1000 * (time.process_time() - started))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(steps):
            step()
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profiled.events() or ():
        durations[event.name, str(event.input_shapes)].append(event.time_range.elapsed_us() / 1000)
    found = dict.fromkeys(PARTS, 0.0)
    for (name, _), each in durations.items():
        part = next((p for p, names in PARTS.items() if any(_is_of(name, n) for n in names)), None)
        if part is not None:
            found[part] += statistics.median(each) * round(len(each) / steps)  # comparisons with the program left out
    whole = statistics.median(times)
    return {**found, "rest": whole - sum(found.values()), "step": whole}


def _is_of(name: str, beginning: str) -> bool:
    return name == beginning or (beginning.endswith("_") and name.startswith(beginning))


def calls_of(shape: Shape, loss: Any, steps: int = 20) -> float:
    """Python calls, built-in functions included, of an eager `SVI.step`."""
    program, x = shape.program(), shape.data()
    pyro.clear_param_store()
    inference = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    for _ in range(3):
        inference.step(x)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(steps):
        inference.step(x)
    profiler.disable()
    return pstats.Stats(profiler).total_calls / steps  # type: ignore[attr-defined]


def main(
    shapes: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(
        key for key, shape in SHAPES.items() if not shape.exact
    ),
    steps: Annotated[int, typer.Option(help="Steps that are timed, and as many that are profiled.")] = 200,
) -> None:
    """Measure, and print the two tables."""
    torch.set_num_threads(1)
    found, calls = {}, {}
    for key in shapes.split(","):
        shape = SHAPES[key]
        found[key] = parts_of(compiled_step(shape), steps)
        theirs = Trace_ELBO(num_particles=DRAWS, vectorize_particles=True, max_plate_nesting=1)
        calls[key] = calls_of(shape, TraceELBO("rloo", num_particles=DRAWS)), calls_of(shape, theirs)
        print(key, file=sys.stderr, flush=True)
    names = [*PARTS, "rest", "step"]
    print(f"| ms of a compiled step | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for key, parts in found.items():
        print(f"| {SHAPES[key].title} | {' | '.join(f'{parts[name]:.2f}' for name in names)} |")
    print("\n| Python calls of an eager `SVI.step` | `TraceELBO` | Pyro `Trace_ELBO` |\n| --- | --- | --- |")
    for key, (ours, pyros) in calls.items():
        print(f"| {SHAPES[key].title} | {ours:.0f} | {pyros:.0f} |")


if __name__ == "__main__":
    typer.run(main)

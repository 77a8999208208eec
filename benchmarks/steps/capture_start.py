"""What capturing a step takes until its graph runs, beside plain steps and Pyro's jitted ones; and what is compiled.

    python -m benchmarks.steps.capture_start

- Start-up: the calls until a captured step's graph runs (the first one plans, the second is captured, the third is held
  against the program), each program in a process of its own, imports done, in seconds and beside so many plain steps.
- Steps: captured ones beside those of `JitTraceEnum_ELBO` in turns, in one process; a ratio is the turns' median.
- `compile=True`: the same start-up in a process with an empty cache of inductor's (torch's own, in a folder), then in a
  second process with what the first one left there.

Whole steps of `SVI` with Adam, validation off, one thread, processor's time, compilers that are started included.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import pyro
import torch
import torch._dynamo  # which the first optimiser that is made imports
import typer

from benchmarks.steps.eager_steps import CONTESTS, GRAPH, JIT, OURS, Contest, Make, ratios, svi
from benchmarks.steps.step_shapes import DRAWS, SHAPES
from pyro_discrete import TraceELBO

__all__ = ["Start", "start_up"]

STARTED = 3
"""Calls until a graph runs alone."""
SUMS = ("mixture", "`loc[z]`", "chain of 100", "chain of 200")
"""Exact sums that `JitTraceEnum_ELBO` serves as well."""
NETWORK = "784-200, two particles"
STARTS = (NETWORK, "64-20, two particles", *SUMS, "chain of 1,000")
MOST_STEPS, MOST_SECONDS, MOST_COMPILING = 5, 2.0, 20.0


@dataclass(frozen=True)
class Start:
    """Processor's and real seconds until a graph runs, and the median of plain steps and of the graph's."""

    seconds: float
    real: float
    plain: float
    graph: float


def _spent() -> float:
    """The processor's seconds of this process and of those that it has waited for."""
    own, waited = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + waited.ru_utime + waited.ru_stime


def start_up(plain: Make, captured: Make) -> Start:
    """Measure in this process, which has made no step yet."""
    with pyro.get_param_store().scope():
        step = captured()
        begun, really = _spent(), time.perf_counter()
        for _ in range(STARTED):
            step()
        seconds, real = _spent() - begun, time.perf_counter() - really
        graph = statistics.median(_timed(step) for _ in range(6))
    with pyro.get_param_store().scope():
        step = plain()
        step()
        return Start(seconds, real, statistics.median(_timed(step) for _ in range(6)), graph)


def _timed(step: Callable[[], Any]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def _compiled() -> Callable[[], Any]:
    """Compiled steps of the belief network."""
    shape = SHAPES["linear-50"]
    program = shape.program()
    elbo = TraceELBO("rloo", num_particles=DRAWS, compile=True)
    return svi(program.model, program.guide, (shape.data(),), elbo)


def _in_process(name: str, compile: bool, cache: str = "") -> Start:
    command = [sys.executable, "-m", "benchmarks.steps.capture_start", "--one", name]
    command += ["--compiled"] if compile else []
    around = {**os.environ, **({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def _starts(only: str) -> None:
    print("| captured start-up of | s | plain step, ms | in plain steps | aim, s | graph's step, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in STARTS:
        if fnmatchcase(name, only):
            found = _in_process(name, compile=False)
            aim, steps = MOST_STEPS * found.plain + MOST_SECONDS, found.seconds / found.plain
            cells = f"{found.seconds:.2f} | {1e3 * found.plain:.2f} | {steps:.0f} | {aim:.2f}"
            print(f"| {name} | {cells} | {1e3 * found.graph:.2f} |", flush=True)


def _steps(only: str, turns: int) -> None:
    print(f"| a captured step of | ms | {JIT}, ms | ours / that | aim |\n| --- | --- | --- | --- | --- |")
    for name in SUMS:
        if fnmatchcase(name, only):
            ways = CONTESTS[name]().ways
            contest = Contest({OURS: ways[GRAPH], JIT: ways[JIT]}, {})
            ms, compared = ratios(contest, turns)
            middle, low, high = compared[JIT]
            print(
                f"| {name} | {ms[OURS]:.2f} | {ms[JIT]:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | 1.0 |",
                flush=True,
            )


def _compiling() -> None:
    print("| `compile=True`, belief network 784-200 | s of the processors | s | aim |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as cache:
        for what in ("cache empty", "a second process"):
            found = _in_process(NETWORK, True, cache)
            print(f"| {what} | {found.seconds:.1f} | {found.real:.1f} | {MOST_COMPILING:g} |", flush=True)


def main(
    only: Annotated[str, typer.Option(help="Glob of what is timed, by name.")] = "*",
    parts: Annotated[str, typer.Option(help="Of start, steps, compiled: what is measured.")] = "start,steps,compiled",
    turns: Annotated[int, typer.Option(help="How often each way of making steps is measured.")] = 20,
    one: Annotated[str | None, typer.Option(help="One start-up, as JSON: how they are measured.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="That of compiled steps.")] = False,
) -> None:
    """Measure, and print tables in Markdown."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if one is not None:
            ways = CONTESTS[one]().ways
            print(json.dumps(asdict(start_up(ways[OURS], _compiled if compiled else ways[GRAPH]))))
            return
        chosen = parts.split(",")
        if "start" in chosen:
            _starts(only)
        if "steps" in chosen:
            _steps(only, turns)
        if "compiled" in chosen:
            _compiling()


if __name__ == "__main__":
    typer.run(main)

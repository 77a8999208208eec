"""Time of exact sums over that of Pyro's `TraceEnum_ELBO`, on programs after Pyro's examples and after packages.

    python -m benchmarks.steps.exact_sums
    python -m benchmarks.steps.exact_sums --only "hmm*" --turns 50

The programs are those of `benchmarks.soundness.pyro_examples`, where losses and gradients are compared. A step is loss
and gradient, by `TraceELBO("enumerate")` and by Pyro, in turns, in one process with one thread; times are medians of
the processor's, in milliseconds, the ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import statistics
import time
import warnings
from fnmatch import fnmatchcase
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import TraceEnum_ELBO

from benchmarks.examples.catalogue import names
from benchmarks.examples.example import EXAMPLES, Example
from pyro_discrete import TraceELBO

__all__ = ["Timed", "timed"]

WARM_UP = 3

Timed = tuple[float, float, tuple[float, float, float]]
"""Milliseconds of a step of ours and of Pyro's, and the median ratio with the quartiles around it."""


def timed(name: str, turns: int) -> Timed:
    """One program."""
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = EXAMPLES[name]()
        made.guide(*made.args)
        settings: Any = {"max_plate_nesting": made.nesting}
        elbos = TraceELBO("enumerate", **settings), TraceEnum_ELBO(**settings)
        found = [[_milliseconds(elbo, made) for elbo in elbos] for _ in range(WARM_UP + turns)][WARM_UP:]
    ours, theirs = zip(*found, strict=True)
    lower, middle, upper = statistics.quantiles([one / other for one, other in found], n=4, method="inclusive")
    return statistics.median(ours), statistics.median(theirs), (middle, lower, upper)


def _milliseconds(elbo: Any, made: Example) -> float:
    start = time.process_time()
    elbo.loss_and_grads(made.model, made.guide, *made.args)
    spent = 1e3 * (time.process_time() - start)
    for parameter in pyro.get_param_store().values():
        parameter.unconstrained().grad = None
    return spent


def main(
    only: Annotated[str, typer.Option(help="Glob of the programs to time.")] = "*",
    turns: Annotated[int, typer.Option(help="Steps of each, after three that do not count.")] = 30,
) -> None:
    """Time the programs and print a table in Markdown."""
    torch.set_num_threads(1)
    print("| program | ours, ms | Pyro, ms | ratio |\n| --- | --- | --- | --- |")
    for name in names():
        if fnmatchcase(name, only):
            ours, theirs, ratio = timed(name, turns)
            print(f"| `{name}` | {ours:.1f} | {theirs:.1f} | {ratio[0]:.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)

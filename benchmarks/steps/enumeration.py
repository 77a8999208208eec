"""How exact inference grows: a hidden Markov model with its length, a mixture with its number of points.

    python -m benchmarks.steps.enumeration --out runs/enumeration

Each size runs in a process of its own, as memory is its peak. Times are the least of several steps (loss and gradient),
without the first call, which plans; what that takes is shown beside them. `guided` has a chain in the guide as well,
whose values are enumerated; `pyro` is Pyro's `TraceEnum_ELBO` with the annotations that it needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from models.reports.pictures import PALETTE
from pyro_discrete import DiscretePosterior, TraceELBO

STATES = 4
LENGTHS = (10, 100, 1_000, 10_000)
POINTS = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 1_000
LABELS = {
    "ours": 'TraceELBO("enumerate"), a step',
    "guided": "the same with a chain in the guide",
    "viterbi": "most probable path, all included",
    "pyro": "Pyro's TraceEnum_ELBO, a step",
}
MARKS = {"ours": "o", "viterbi": "^", "pyro": "D", "guided": "s"}
COLOURS = dict(zip(MARKS, PALETTE, strict=False))
SIZES = {"chain": "length of the chain", "mixture": "points, in minibatches of 1,000"}


def chain(x: Tensor) -> None:
    """A hidden Markov model of four states, its values one by one in `pyro.markov`."""
    logits = pyro.param("transition", lambda: 2 * torch.eye(STATES)).log_softmax(-1)
    locs = pyro.param("locs", lambda: torch.linspace(-2.0, 2.0, STATES))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(logits=logits[z]))
        pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def mixture(x: Tensor) -> None:
    """A mixture of four Gaussians, in minibatches of a subsampled plate."""
    weights = pyro.param("weights", lambda: torch.zeros(STATES))
    locs = pyro.param("locs", lambda: torch.linspace(-2.0, 2.0, STATES))
    with pyro.plate("data", len(x), subsample_size=min(BATCH, len(x))) as i:
        z = pyro.sample("z", dist.Categorical(logits=weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x[i])


def chain_guide(x: Tensor) -> None:
    """A chain of its own logits at each step; unbound, as each `logits[t]` alone has a gradient of the size of all."""
    logits = pyro.param("q", lambda: torch.zeros(len(x), STATES, STATES)).unbind()
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(logits=logits[t][z]))


def nothing(x: Tensor) -> None:
    """A guide that leaves all to the sum."""


def measure(program: str, size: int, what: str) -> dict[str, Any]:
    """Time and memory of one program at one size, in this process."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = torch.randn(size)
    model = {"chain": chain, "mixture": mixture}[program]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "pyro":
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        marked = config_enumerate(model)

        def run() -> float:
            return elbo.loss_and_grads(marked, nothing, x)
    elif what in ("ours", "guided"):
        ours = TraceELBO("enumerate")
        guide = nothing if what == "ours" else chain_guide

        def run() -> float:
            return ours.loss_and_grads(model, guide, x)
    else:
        posterior = DiscretePosterior(model)

        def run() -> float:
            return float(len(posterior.most_probable(x)))

    first, value = _timed(run)
    turns = 1 if what == "viterbi" or first > 60 else max(3, min(20, int(10 / first)))
    later = [first] if what == "viterbi" else [_timed(run)[0] for _ in range(turns)]
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "program": program,
        "size": size,
        "what": what,
        "first": first,
        "step": min(later),
        "memory": memory,
        "value": value,
    }


def _timed(run: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = run()
    return time.process_time() - start, value


def cases(lengths: tuple[int, ...] = LENGTHS, points: tuple[int, ...] = POINTS) -> list[tuple[str, int, str]]:
    """Every program, size and way of going about it."""
    found = [("chain", n, what) for what in ("ours", "viterbi", "pyro", "guided") for n in lengths]
    found += [("mixture", n, what) for what in ("ours", "pyro") for n in points]
    return found


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| program | size | by | ms a step | first call, s | MB beyond the imports |", "| --- " * 6 + "|"]
    for r in results:
        cells = [r["program"], f"{r['size']:,}", r["what"], f"{1e3 * r['step']:,.1f}", f"{r['first']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{r['memory']:,.0f}"]) + " |")
    return "\n".join(lines)


def picture(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each program: milliseconds above, megabytes below; grey: linear growth."""
    programs = list(dict.fromkeys(r["program"] for r in results))
    figure = Figure(figsize=(5.2 * len(programs), 7), layout="constrained")
    panels = figure.subplots(2, len(programs), squeeze=False, sharex="col")
    for column, program in enumerate(programs):
        for row, (key, scale, label) in enumerate((("step", 1e3, "ms"), ("memory", 1.0, "MB beyond the imports"))):
            axes = panels[row][column]
            mine = [r for r in results if r["program"] == program]
            for what in dict.fromkeys(r["what"] for r in mine):
                found = [r for r in mine if r["what"] == what]
                sizes, heights = [r["size"] for r in found], [max(scale * r[key], 0.1) for r in found]
                axes.plot(sizes, heights, marker=MARKS[what], color=COLOURS[what], label=LABELS[what])
            if program == "chain":
                ours = [r for r in results if (r["program"], r["what"]) == (program, "ours")]
                end = scale * ours[-1][key]
                axes.plot(
                    [r["size"] for r in ours],
                    [end * r["size"] / ours[-1]["size"] for r in ours],
                    color="#BBBBBB",
                    linestyle="--",
                    zorder=0,
                    label="linear",
                )
            axes.set(xscale="log", yscale="log", ylabel=label)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 1.0), max(high, 100.0))
            if row == 0:
                axes.set_title("hidden Markov model, 4 states" if program == "chain" else "mixture of 4 Gaussians")
                axes.legend(fontsize=8)
            else:
                axes.set_xlabel(SIZES[program])
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    """Measure what has not been measured, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; sizes found there are kept")
    parser.add_argument("--only", nargs=3, metavar=("PROGRAM", "SIZE", "BY"), help="one size, in this process")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--points", type=int, nargs="+", default=POINTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only is not None:
        program, size, what = options.only
        found = measure(program, int(size), what)
        (options.out / f"{program}-{what}-{size}.json").write_text(json.dumps(found))
        return
    results = []
    for program, size, what in cases(tuple(options.lengths), tuple(options.points)):
        path = options.out / f"{program}-{what}-{size}.json"
        if not path.exists():
            command = [sys.executable, "-m", "benchmarks.steps.enumeration", "--out", str(options.out)]
            subprocess.run([*command, "--only", program, str(size), what], check=True)
        results.append(json.loads(path.read_text()))
    (options.out / "enumeration.md").write_text(table(results) + "\n")
    picture(results, options.out / "enumeration.png")
    print(table(results))


if __name__ == "__main__":
    main()

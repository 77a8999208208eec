"""`LinearChain` beside torch-struct's `LinearChainCRF`: log Z, marginals, and their time.

torch-struct is looked for in a folder of its own:

    pip install --no-deps --target FOLDER torch-struct==0.5
    python -m benchmarks.steps.chains_beside_torch_struct --torch-struct FOLDER \\
        --out benchmarks/results/chains_beside_torch_struct.json

Potentials of links are standard normal (torch-struct has none of a first state; ours are zero). Values are compared in
double precision: the largest difference of log Z over its size, and of a marginal. Times are the processor's, of one
thread and in single precision, medians of runs in turn: each makes the distribution anew.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from pyro_discrete.distributions import LinearChain

SIZES = [(1, 100, 10), (16, 100, 10), (16, 100, 3), (1, 1000, 10), (16, 1000, 5), (4, 200, 30), (1, 10_000, 4)]
"""Elements, length, states."""


def ours(links: Tensor) -> LinearChain:
    """At potentials `[batch, T - 1, from, to]`."""
    initial = links.new_zeros(links.shape[0], links.shape[-1])
    return LinearChain.from_potentials(initial, links, validate_args=False)


def theirs(links: Tensor) -> Any:
    """At the same potentials, which it has as `[batch, T - 1, to, from]`."""
    from torch_struct import LinearChainCRF

    return LinearChainCRF(links.mT.contiguous())


def differences(size: tuple[int, int, int]) -> dict[str, float]:
    """Of log Z, over its size, and of marginals of pairs, in double precision."""
    elements, length, states = size
    links = torch.randn(elements, length - 1, states, states, dtype=torch.float64)
    one, other = ours(links), theirs(links)
    total = other.partition.reshape(elements)
    return {
        "log Z": ((one.log_partition - total) / total).abs().max().item(),
        "marginals": (one.marginals()[:, 1:].mT - other.marginals).abs().max().item(),
    }


def times(size: tuple[int, int, int], seconds: float) -> dict[str, list[float]]:
    """Median ms of ours and of theirs, in turn, for log Z and for marginals."""
    elements, length, states = size
    links = torch.randn(elements, length - 1, states, states)
    runs: dict[str, list[Callable[[], Tensor]]] = {
        "log Z": [lambda: ours(links).log_partition, lambda: theirs(links).partition],
        "marginals": [lambda: ours(links).marginals(), lambda: theirs(links).marginals],
    }
    found = {}
    for what, pair in runs.items():
        spent: list[list[float]] = [[], []]
        for run in pair:
            run()
        while len(spent[0]) < 5 or (sum(map(sum, spent)) < 1000 * seconds and len(spent[0]) < 300):
            for run, each in zip(pair, spent, strict=True):
                started = time.process_time()
                run()
                each.append(1000 * (time.process_time() - started))
        found[what] = [statistics.median(each) for each in spent]
    return found


def main(
    torch_struct: Annotated[Path, typer.Option(help="A folder that holds torch-struct.")],
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")],
    seconds: Annotated[float, typer.Option(help="Of runs at each point.")] = 3.0,
) -> None:
    """Compare all sizes, and print a line for each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.path.append(str(torch_struct))
    warnings.filterwarnings("ignore", module="torch_struct")
    results = []
    for size in SIZES:
        apart, ms = differences(size), times(size, seconds)
        results.append({"elements, length, states": size, "differences": apart, "ms": ms})
        shown = "; ".join(
            f"{what} differs by {apart[what]:.1e}, {a:.3g} ms to {b:.3g} ms, ratio {a / b:.2f}"
            for what, (a, b) in ms.items()
        )
        print(f"{size[0]} x {size[1]} x {size[2]} states: {shown}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

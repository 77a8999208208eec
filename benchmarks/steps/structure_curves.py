"""Time of structured distributions against their size: draw, score and gradient; noise given the draw, and its slope.

Sixteen elements at once (of chains one, of 10 states), single precision, logits standard normal, made anew for each
call. "Score" is draw + `log_prob` + the gradient of that in the logits; "noise" is a draw, noise given it, the soft
value at temperature 0.5 and the gradient of its square. Times are the processor's, of one thread, medians.

    python -m benchmarks.steps.structure_curves --out benchmarks/results
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from pyro_discrete.distributions import (
    Arborescence,
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    Structure,
)

ELEMENTS, STATES = 16, 10

Make = Callable[[Tensor], Structure]

CURVES: dict[str, tuple[Make, Callable[[int], tuple[int, ...]], list[int], str]] = {
    "ranking": (PlackettLuce, lambda n: (ELEMENTS, n), [10, 30, 100, 300, 1000], "n log n; soft n^2"),
    "subset, n / 10 of n": (
        lambda logits: KSubset(logits, logits.shape[-1] // 10),
        lambda n: (ELEMENTS, n),
        [10, 30, 100, 300, 1000],
        "n k log(n / k), k = n / 10",
    ),
    "sequential matching": (SequentialMatching, lambda n: (ELEMENTS, n, n), [10, 30, 100], "n^2, in n steps"),
    "Gibbs matching": (GibbsMatching, lambda n: (ELEMENTS, n, n), [4, 6, 8, 10, 12], "n 2^n"),
    "tree": (Arborescence, lambda n: (ELEMENTS, n, n), [10, 20, 50, 100], "n^3, in n steps"),
    "chain": (LinearChain, lambda n: (1, n, STATES, STATES), [10, 100, 1000, 10_000], "T S^3, in log T rounds"),
}
"""How a structure is made of logits, their shape at a size, the sizes, and how its cost grows."""

KINDS = ("score", "noise")


def step(make: Make, logits: Tensor, kind: str) -> Tensor:
    """The gradient in the logits, of the score of a draw or of its soft value."""
    structure = make(logits.detach().requires_grad_())
    value = structure.sample()
    if kind == "score":
        total = structure.log_prob(value).sum()
    else:
        total = structure.soft(structure.perturb_given(value), 0.5).square().sum()
    return torch.autograd.grad(total, structure.logits)[0]


def measured(name: str, size: int, kind: str, seconds: float) -> float:
    """Median ms of a step."""
    make, shape = CURVES[name][:2]
    times: list[float] = []
    step(make, torch.randn(shape(size)), kind)
    while len(times) < 3 or (sum(times) < 1000 * seconds and len(times) < 200):
        logits = torch.randn(shape(size))
        started = time.process_time()
        step(make, logits, kind)
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times)


def kinds_of(name: str) -> list[str]:
    """Trees have no noise."""
    make, shape, sizes = CURVES[name][:3]
    return [kind for kind in KINDS if kind == "score" or make(torch.zeros(shape(sizes[0]))).defines("perturb_given")]


def growth(name: str, points: dict[str, float]) -> str:
    """What the last two points show: the exponent of the size, or of matchings over sets the factor of a row more."""
    (n, ms), (larger, more) = [(int(size), each) for size, each in points.items()][-2:]
    if name == "Gibbs matching":
        return f"at the end x {(more / ms) ** (1 / (larger - n)):.2f} for a row more"
    return f"at the end exponent {math.log(more / ms) / math.log(larger / n):.1f}"


def picture(results: dict[str, Any], path: Path) -> None:
    """Both kinds against the size, logarithmically, a panel a structure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(10, 6), sharey=True)
    for panel, (name, kinds) in zip(panels.flat, results.items(), strict=False):
        for kind, marker in zip(KINDS, "os", strict=True):
            if kind in kinds:
                sizes = [int(size) for size in kinds[kind]]
                panel.plot(sizes, list(kinds[kind].values()), marker=marker, ms=4, label=LABELS[kind])
        sizes = [int(size) for size in kinds["score"]]
        panel.set_xscale("linear" if name == "Gibbs matching" else "log")  # the exponential one is straight so
        panel.set_yscale("log")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.set_title(f"{name}: {CURVES[name][3]}", fontsize=9)
        panel.set_xlabel({"tree": "nodes", "chain": "length"}.get(name, "rows" if "matching" in name else "items"))
    for row in panels:
        row[0].set_ylabel("ms (processor)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle("Sixteen structures at once (one chain, of 10 states), against their size", fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


LABELS = {"score": "draw, score, gradient", "noise": "draw, noise given it, soft value, gradient"}


def main(
    out: Annotated[Path, typer.Option(help="Folder of structure_curves.json and structure_curves.png.")],
    seconds: Annotated[float, typer.Option(help="Of steps at each point.")] = 1.0,
    sizes: Annotated[int, typer.Option(help="So many sizes of each structure at most.")] = 99,
) -> None:
    """Measure all points, print them as a table, and draw the picture."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, (_, _, every, grows) in CURVES.items():
        results[name] = {kind: {} for kind in kinds_of(name)}
        for kind, points in results[name].items():
            for size in every[:sizes]:
                points[str(size)] = measured(name, size, kind, seconds)
            shown = ", ".join(f"{size}: {ms:.3g}" for size, ms in points.items())
            grown = f"; {growth(name, points)}" if len(points) > 1 else ""
            print(f"{name} ({grows}), {kind}, ms: {shown}{grown}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "structure_curves.json").write_text(json.dumps(results, indent=1) + "\n")
    picture(results, out / "structure_curves.png")


if __name__ == "__main__":
    typer.run(main)

"""Bias and variance of every relaxation over its temperature, on small programs whose exact gradient is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from tqdm import tqdm

from models.reports.pictures import PALETTE
from pyro_discrete import TraceELBO, available_estimators
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator
from pyro_discrete.testing import bias_and_variance, programs

__all__ = ["RELAXATIONS", "measure", "picture"]

SHOWN = {"bernoulli_event": "three bits, quadratic cost", "one_hot_event": "two one-hot vectors, quartic cost"}
RELAXATIONS = [
    name
    for name, info in available_estimators().items()
    if issubclass(info.cls, RelaxedEstimator) and name != "decoupled_straight_through"  # here, "straight_through"
]

SETTINGS: dict[str, dict[str, Any]] = {"gumbel_softmax": {"kl": "linear"}}
"""The relaxation of the whole cost, as for all others, where the default has the divergence in closed form."""


def measure(temperatures: list[float], particles: int, calls: int) -> dict[str, Any]:
    """Program -> relaxation -> temperature, bias, its error and variance, relative to the exact gradient."""
    chosen = {program.name: program for program in programs() if program.name in SHOWN}
    found: dict[str, Any] = {}
    with tqdm(total=len(SHOWN) * len(RELAXATIONS) * len(temperatures), disable=None) as bar:
        for program in SHOWN:
            rows = found[program] = {}
            for name in RELAXATIONS:
                rows[name] = []
                for temperature in temperatures:
                    bar.set_description(f"{program} {name}")

                    def make(k: int, name: str = name, temperature: float = temperature) -> TraceELBO:
                        cls: Any = available_estimators()[name].cls
                        return TraceELBO(cls(temperature=temperature, **SETTINGS.get(name, {})), num_particles=k)

                    one = bias_and_variance(make, chosen[program], particles=particles, calls=calls)
                    rows[name].append([temperature, one.bias, one.bias_error, one.variance])
                    bar.update()
    return found


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Bias above, variance below, a column for each program."""
    figure = Figure(figsize=(6.2 * len(results), 8.6), layout="constrained")
    panels = figure.subplots(2, len(results), squeeze=False)
    for column, (program, rows) in enumerate(results.items()):
        for number, (name, points) in enumerate(rows.items()):
            style = {"color": PALETTE[number % len(PALETTE)], "linestyle": "-" if number < len(PALETTE) else "--"}
            temperature, bias, error, variance = (list(each) for each in zip(*points, strict=True))
            seen = [b if b > 2 * e else math.nan for b, e in zip(bias, error, strict=True)]
            panels[0][column].plot(temperature, seen, marker="o", markersize=3, label=name, **style)
            panels[1][column].plot(temperature, variance, marker="o", markersize=3, **style)
        panels[0][column].set_title(
            f"{SHOWN[program]}\nbias (gaps: none seen, less than two standard errors)", fontsize=10
        )
        panels[1][column].set_title("variance of one draw", fontsize=10)
        for axes in panels[:, column]:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("temperature")
        panels[0][column].set_ylabel("in norms of the exact gradient")
        panels[1][column].set_ylabel("in squared norms of the exact gradient")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=80)


def main(
    particles: Annotated[int, typer.Option(help="Draws for each gradient.", min=1)] = 10_000,
    calls: Annotated[int, typer.Option(help="Gradients for each mean and variance.", min=2)] = 60,
    points: Annotated[int, typer.Option(help="Temperatures, from 0.03 to 4.", min=2)] = 9,
    out: Annotated[Path, typer.Option(help="Folder.")] = Path("runs/bias_variance"),
) -> None:
    """Measure bias and variance over the temperature: bias_variance.json and bias_variance.png."""
    torch.set_num_threads(1)
    temperatures = [round(t, 3) for t in torch.logspace(math.log10(0.03), math.log10(4.0), points).tolist()]
    out.mkdir(parents=True, exist_ok=True)
    results = measure(temperatures, particles, calls)
    write_atomically(out / "bias_variance.json", json.dumps(results) + "\n")
    picture(results, out / "bias_variance.png")


if __name__ == "__main__":
    typer.run(main)

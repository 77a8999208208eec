"""What each relaxation learns: discrete ELBO and importance-weighted bound after short runs, over temperatures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.data.catalogue import load_images
from models.data.images import Images, binarise_once
from models.reports.pictures import PALETTE
from models.runs.config import configure
from models.runs.evaluation import bounds, isolated
from models.runs.training import Training
from pyro_discrete import TraceELBO, available_estimators
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.errors import near_matches

__all__ = ["PROGRAMS", "RELAXATIONS", "Relaxation", "run_one", "section"]

PROGRAMS: dict[str, tuple[str, dict[str, int]]] = {
    "200 bits": ("sbn", {"latents": 200}),
    "20 x 10": ("categorical_vae", {"latents": 20, "categories": 10}),
    "32 x 2": ("categorical_vae", {"latents": 32, "categories": 2}),
    "16 x 4": ("categorical_vae", {"latents": 16, "categories": 4}),
    "11 x 8": ("categorical_vae", {"latents": 11, "categories": 8}),
    "8 x 16": ("categorical_vae", {"latents": 8, "categories": 16}),
}
"""Program and shape; the last four code an image in 32 (or 33) bits."""
TESTED = 500
"""Test images that a run is evaluated on, the first ones."""
MARKS = "os^vD"
GRIDS = ("32 x 2", "16 x 4", "11 x 8", "8 x 16")
"""The programs that share a panel: codes of 32 or 33 bits."""
SHOWN = 12.0
"""Nats below the best that a panel shows."""


@dataclass(frozen=True)
class Relaxation:
    """An estimator with its settings, and the temperatures that are tried; the first is the default one."""

    estimator: str
    temperatures: tuple[float | None, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    particles: int = 1

    def elbo(self, temperature: float | None) -> TraceELBO:
        chosen = {} if temperature is None else {"temperature": temperature}
        return TraceELBO(
            available_estimators()[self.estimator].cls(**chosen, **self.settings), num_particles=self.particles
        )


RELAXATIONS: dict[str, Relaxation] = {
    "gumbel_softmax": Relaxation("gumbel_softmax", (0.35, 0.6)),
    "gumbel_softmax, kl linear": Relaxation("gumbel_softmax", (0.35, 0.6), {"kl": "linear"}),
    "gumbel_softmax, kl relaxed": Relaxation("gumbel_softmax", (0.35, 0.6), {"kl": "relaxed"}),
    "reinmax": Relaxation("reinmax", (1.0, 1.4)),
    "straight_through": Relaxation("straight_through", (1.0, 0.7)),
    "straight_through_gumbel_softmax": Relaxation("straight_through_gumbel_softmax", (0.65, 1.0)),
    "gumbel_rao": Relaxation("gumbel_rao", (0.25, 0.5)),
    "gapped_straight_through": Relaxation("gapped_straight_through", (0.65, 1.0)),
    "decoupled_straight_through, forward 0.9": Relaxation(
        "decoupled_straight_through", (0.7, 1.5), {"forward_temperature": 0.9}
    ),
    "sparse_gumbel_softmax, entmax": Relaxation("sparse_gumbel_softmax", (1.0, 0.5), {"mapping": "entmax"}),
    "sparse_gumbel_softmax, sparsemax": Relaxation("sparse_gumbel_softmax", (1.0, 0.5), {"mapping": "sparsemax"}),
    "rloo, 2 particles": Relaxation("rloo", (None,), particles=2),
}
"""By the name that tables give it; the last one, unbiased, to compare with."""


def run_one(
    program: str, relaxation: Relaxation, temperature: float | None, images: Images, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Train and evaluate: ELBO and bound of `TESTED` test images with hard draws, nats an image; ms a step."""
    kind, shape = PROGRAMS[program]
    config = configure(kind, relaxation.estimator, data=images.name, **shape, **settings)
    test = binarise_once(images.test[:TESTED], config.binarisation)
    with isolated(config.seed):
        training = Training(config, images)
        training.elbo = relaxation.elbo(temperature)
        started = time.process_time()
        training.run()
        taken = 1000 * (time.process_time() - started) / config.steps
    found = bounds(training.program, test, 100)
    return {"elbo": found.elbo, "bound": found.importance_weighted, "ms": taken}


def section(results: Mapping[str, Any]) -> str:
    """The results as tables of markdown, one for each program, each sorted by the discrete ELBO at its best."""
    lines = []
    for program, rows in results["programs"].items():
        heads = ["test ELBO", "100-sample bound", "best temperature", "test ELBO", "100-sample bound", "ms a step"]
        lines += [f"| {program} | default | {' | '.join(heads)} |", "| --- " * (len(heads) + 2) + "|"]
        for name, runs in sorted(rows.items(), key=lambda row: -max(r["elbo"] for r in row[1].values())):
            first = RELAXATIONS[name].temperatures[0]
            default = runs.get(str(first))
            best = max(runs, key=lambda t: runs[t]["elbo"])
            at_default = "- | -" if default is None else f"{default['elbo']:.2f} | {default['bound']:.2f}"
            lines.append(
                f"| `{name}` | {_temperature(str(first))} | {at_default} | {_temperature(best)} | "
                f"{runs[best]['elbo']:.2f} | {runs[best]['bound']:.2f} | {runs[best]['ms']:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _temperature(text: str) -> str:
    return "-" if text == "None" else text


def _chosen(given: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a list with semicolons; all of them if it is empty."""
    names = [name.strip() for name in given.split(";") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"unknown name {name!r}. {near_matches(name, known)}", param_hint=option)
    return names


def picture(results: Mapping[str, Any], defaults: Mapping[str, float | None], path: Path) -> None:
    """Write a panel for each program over the temperature, and one for those of `GRIDS`, by their categories.

    `defaults` maps each relaxation's name to its temperature, None for what has no temperature.
    """
    programs = results["programs"]
    swept = {n: rows for n, rows in programs.items() if n not in GRIDS}
    grid = {n: rows for n, rows in programs.items() if n in GRIDS}
    count = len(swept) + bool(grid)
    figure = Figure(figsize=(5.6 * count, 6.2), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, (program, rows) in zip(panels, swept.items(), strict=False):
        _over_temperatures(axes, program, rows, defaults)
    if grid:
        _over_categories(panels[-1], grid, defaults)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=85)


def _style(number: int) -> dict[str, Any]:
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": "-" if number < len(PALETTE) else "--",
        "marker": MARKS[number % len(MARKS)],
        "markersize": 5,
        "linewidth": 1.2,
    }


def _over_temperatures(axes: Axes, program: str, rows: Mapping[str, Any], defaults: Mapping[str, float | None]) -> None:
    for number, (name, default) in enumerate(defaults.items()):
        runs = rows.get(name, {})
        if default is None:
            for one in runs.values():
                axes.axhline(one["elbo"], color="0.4", linestyle=":", label=name)
        elif runs:
            points = sorted((float(t), one["elbo"]) for t, one in runs.items())
            style = _style(number)
            axes.plot([t for t, _ in points], [e for _, e in points], label=name, markerfacecolor="white", **style)
            at = [(t, e) for t, e in points if t == default]
            axes.plot([t for t, _ in at], [e for _, e in at], **{**style, "linestyle": ""})
    _leave_out_far_below(axes, {n: [one["elbo"] for one in runs.values()] for n, runs in rows.items()})
    axes.set_xscale("log")
    ticks = sorted({float(t) for runs in rows.values() for t in runs if t != "None"})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=60, fontsize=7)
    axes.minorticks_off()
    axes.set_title(f"{program} (filled: default temperature)", fontsize=10)
    axes.set_xlabel("temperature")
    axes.set_ylabel("discrete test ELBO, nats an image")


def _leave_out_far_below(axes: Axes, drawn: Mapping[str, Sequence[float]]) -> None:
    """End the panel some nats below the best, and say what is below that."""
    highest = {name: max(heights) for name, heights in drawn.items() if heights}
    best = max(highest.values())
    far = {name: height for name, height in highest.items() if height < best - SHOWN}
    if far:
        axes.set_ylim(best - SHOWN, best + 0.5)
        text = "\n".join(f"below: {name}, {height:.1f} at best" for name, height in far.items())
        axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=8)


def _over_categories(axes: Axes, grid: Mapping[str, Any], defaults: Mapping[str, float | None]) -> None:
    """By how much each relaxation, at its default temperature, is above the one without a temperature."""
    (reference,) = (name for name, default in defaults.items() if default is None)
    order = sorted(grid, key=lambda program: int(program.split("x")[1]))
    drawn: dict[str, list[float]] = {reference: [0.0]}
    for number, (name, default) in enumerate(defaults.items()):
        found = [
            (program, grid[program][name][str(default)]["elbo"] - grid[program][reference]["None"]["elbo"])
            for program in order
            if default is not None and str(default) in grid[program].get(name, {}) and reference in grid[program]
        ]
        if found:
            drawn[name] = [e for _, e in found]
            axes.plot([p for p, _ in found], drawn[name], label=name, **_style(number))
    _leave_out_far_below(axes, drawn)
    axes.axhline(0.0, color="0.4", linestyle=":", label=reference)
    axes.set_title("codes of 32 bits, default temperatures", fontsize=10)
    axes.set_xlabel("variables x categories")
    axes.set_ylabel(f"discrete test ELBO above that of {reference}")


def main(
    programs: Annotated[str, typer.Option(help="Names, with semicolons.  [default: all]")] = "",
    relaxations: Annotated[str, typer.Option(help="Names, with semicolons.  [default: all]")] = "",
    defaults_only: Annotated[bool, typer.Option("--defaults-only", help="Default temperatures alone.")] = False,
    steps: Annotated[int, typer.Option(help="Training steps of a run.", min=1)] = 1000,
    data: Annotated[str, typer.Option(help="fashion-mnist or digits.")] = "fashion-mnist",
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder; runs that it holds are not made again.")] = Path(
        "runs/relaxations"
    ),
) -> None:
    """Train each relaxation at each temperature, each in a short run: relaxations.json, .md and .png.

    A call that is stopped goes on where it was, but for the run it was in.
    """
    chosen = _chosen(programs, list(PROGRAMS), "--programs")
    names = _chosen(relaxations, list(RELAXATIONS), "--relaxations")
    torch.set_num_threads(1)
    images = load_images(data)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "relaxations.json"
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed}
    results = json.loads(kept.read_text()) if kept.exists() else {"settings": settings, "programs": {}}
    if results["settings"] != settings:
        raise typer.BadParameter(f"{kept} holds runs with {results['settings']}", param_hint="--out")
    for program in chosen:
        for name in names:
            relaxation = RELAXATIONS[name]
            for temperature in relaxation.temperatures[: 1 if defaults_only else None]:
                runs = results["programs"].setdefault(program, {}).setdefault(name, {})
                if str(temperature) not in runs:
                    runs[str(temperature)] = run_one(program, relaxation, temperature, images, settings)
                    write_atomically(kept, json.dumps(results, indent=2) + "\n")
    write_atomically(out / "relaxations.md", section(results))
    picture(results, {name: each.temperatures[0] for name, each in RELAXATIONS.items()}, out / "relaxations.png")
    typer.echo(section(results))


if __name__ == "__main__":
    typer.run(main)

"""Models that find structure in data, against answers that were not made here: a line a claim.

    python -m benchmarks.learning.structure_from_data
    python -m benchmarks.learning.structure_from_data --models structure --sachs FOLDER --seeds 0,1,2

Each line says `right`, or what is short, with the mark that was set before the run; exit code 1 if one is short. Of
several seeds all have to be right. Data and rivals are the same in all seeds. Data that are not installed are short,
too, and what to install is said; the other lines are printed all the same.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.learning.from_data.line import Line, over_seeds
from models.errors import DataError

__all__ = ["MODELS", "app"]

MODELS = ("structure", "blocks", "topics", "motif")
"""Each a module of `from_data` with a function `lines`."""
app = typer.Typer(add_completion=False)


def shown(line: Line) -> str:
    """The line as it is printed."""
    return f"{line.model}: {line.claim}: {'right' if line.right else 'short'}, {line.found} ({line.mark})"


@app.command()
def main(
    chosen: Annotated[str, typer.Option("--models", help="Names separated by commas.")] = ",".join(MODELS),
    sachs: Annotated[Path | None, typer.Option(help="Folder of Sachs' data, if the package cdt is absent.")] = None,
    seeds: Annotated[str, typer.Option(help="Of the runs, separated by commas.")] = "0",
) -> None:
    """Train and judge the models, one after the other."""
    short = 0
    for name in chosen.split(","):
        if name not in MODELS:
            raise typer.BadParameter(f"{name} is none of {', '.join(MODELS)}.")
        module: Any = import_module(f"benchmarks.learning.from_data.{name}")
        given = {"data_dir": sachs} if name == "structure" else {}
        try:
            for one in zip(*(module.lines(seed, **given) for seed in map(int, seeds.split(","))), strict=True):
                line = over_seeds(one)
                print(shown(line), flush=True)
                short += not line.right
        except DataError as error:
            print(f"{name}: short, {error}", flush=True)
            short += 1
    raise typer.Exit(int(short > 0))


if __name__ == "__main__":
    app()

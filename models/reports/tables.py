"""What the command line prints: tables of results, and what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from models.data.catalogue import DATASETS
from models.data.images import BINARISATIONS
from models.runs.comparison import Comparison
from models.runs.config import PROGRAMS, RunConfig, size_of
from models.runs.estimators import bias
from models.runs.training import RunResult
from models.runs.trials import KINDS, Trial, kind_of, try_program
from pyro_discrete import available_estimators

__all__ = ["choices", "comparison_table", "run_table"]


def run_table(result: RunResult) -> Table:
    """A finished run in one row."""
    config, bounds = result.training.config, result.bounds
    element = PROGRAMS[config.program].reads.element
    table = Table(title=f"{config.program} on {config.data}{_binarised(config)}, bounds in nats per {element}")
    found = [name.removeprefix("test_").replace("_", " ") for name in result.found]
    for heading in ("estimator", "steps", "test ELBO", f"{bounds.samples}-sample bound", *found, "ms per step"):
        table.add_column(heading, justify="left" if heading == "estimator" else "right")
    table.add_row(
        config.estimator,
        str(result.training.step),
        f"{bounds.elbo:.2f}",
        f"{bounds.importance_weighted:.2f}",
        *(f"{value:.3f}" for value in result.found.values()),
        f"{result.metrics.ms_per_step:.2f}",
    )
    return table


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """All runs of some comparisons, a section for each program, its best run in bold."""
    first, config = comparisons[0].rows[0], comparisons[0].config
    kind = PROGRAMS[config.program].reads
    found = list(first.result.found)
    table = Table(
        title=f"{config.data}{_binarised(config)}, {config.steps} steps; bounds in nats per {kind.element}",
        caption=f"ELBO and bound: hard samples on the test {kind.elements}. Gradient variance, (nats per "
        f"{kind.element})²: {first.noise.draws} draws on one batch, summed over parameters, nvil without its "
        "rescaling; measured where "
        f"{' / '.join(comparison.shared_point for comparison in comparisons)} ended.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("estimator", "gradient"):
        table.add_column(heading, overflow="fold")
    for heading in (
        "particles",
        "test\nELBO",
        f"{first.result.bounds.samples}-sample\nbound",
        *(name.removeprefix("test_").replace("_", "\n") for name in found),
        "variance,\nguide",
        "variance,\nmodel",
        "ms a\nstep",
    ):
        table.add_column(heading, justify="right")
    for comparison in comparisons:
        table.add_row(f"[italic]{comparison.config.program}, {size_of(comparison.config)}[/italic]")
        for row in comparison.rows:
            table.add_row(
                f"  {row.estimator}",
                bias(row.estimator),
                str(row.result.training.config.particles),
                f"{row.result.bounds.elbo:.2f}",
                f"{row.result.bounds.importance_weighted:.2f}",
                *(f"{row.result.found[name]:.3f}" for name in found),
                _significant(row.noise.guide),
                _significant(row.noise.model),
                f"{row.result.metrics.ms_per_step:.2f}",
                style="bold" if row is comparison.best else None,
            )
        table.add_section()
    return table


def _significant(value: float) -> str:
    """Two significant digits, without an exponent for large numbers; what is rounding noise of an exact sum is 0."""
    if value < 1e-9:
        return "0"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _binarised(config: RunConfig) -> str:
    return "" if config.binarisation == "none" else f", {config.binarisation} binarisation"


def choices() -> dict[str, Any]:
    """What there is to choose from, each with a line on it; each program is tried under every estimator."""
    known = available_estimators()
    return {
        "programs": [_told(try_program(name)) for name in PROGRAMS],
        "relaxed": [name for name, info in known.items() if kind_of(info.cls) == "relaxed"],
        "estimators": [
            {
                "name": name,
                "kind": kind_of(info.cls),
                "estimate": bias(name),
                "evaluations a step": info.evaluations,
                "serves": ", ".join(sorted(family.value for family in info.families)),
                "what": f"{info.summary} ({info.reference})",
            }
            for name, info in known.items()
        ],
        "data sets": [{"name": name, "what": (f.__doc__ or "").splitlines()[0]} for name, f in DATASETS.items()],
        "binarisation": [{"name": name, "what": what} for name, what in BINARISATIONS.items()],
    }


def _told(trial: Trial) -> dict[str, str]:
    """A program, with how many estimators of each kind it ran under, unmodified, when it was tried."""
    program = PROGRAMS[trial.program]
    about = {"name": trial.program, "what": program.summary, "reads": program.reads.elements}
    return about | {kind: trial.told(kind) for kind in KINDS}

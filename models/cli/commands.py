"""The command line: `python -m models train | compare | demo | bandit | watch | report | list`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from models.cli.demo import demonstrate
from models.cli.options import takes_settings
from models.data.catalogue import load_data
from models.data.logged import load_log
from models.errors import ConfigError, ModelsError
from models.programs.bandit import bandit_table, learn_policy
from models.reports.pictures import picture_comparisons, picture_run
from models.reports.progress import Progress
from models.reports.report import write_report
from models.reports.tables import choices, comparison_table, run_table
from models.runs.comparison import compare as run_comparison
from models.runs.config import LARGEST_SEED, RunConfig, configure, resumed
from models.runs.estimators import has_temperature
from models.runs.folder import RUN_FILES, rank_of, refuse_used_folder, was_broken_off
from models.runs.training import run, run_beside
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.interrupts import Interrupted

__all__ = ["app"]

BAD_INPUT = 2
"""Exit code for what the user can put right."""
TABLE_WIDTH = 140
"""Columns of a table that is not written to a terminal."""

app = typer.Typer(
    help="Train ready Pyro programs on real data under any gradient estimator of pyro_discrete.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Program = Annotated[str, typer.Argument(help="A name from `list`: sbn, categorical_vae, gmm, lca, hmm, rankings ...")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the data's files, if not where their package puts them.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with the settings it has.")]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between two checkpoints.")]
BoundSamples = Annotated[int, typer.Option(help="Samples of the final importance-weighted bound.")]
Threads = Annotated[int | None, typer.Option(help="Torch's threads.  [default: torch's own choice]", min=1)]


def say(text: str) -> None:
    """A line for the user that is no part of a table."""
    Console().print(text, soft_wrap=True, highlight=False, markup=False)


def show(table: Table) -> None:
    """A table: in a file or a pipe, where the width is nobody's, wide enough for its columns."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    console.print(table)


@contextmanager
def reported(threads: int | None = None) -> Iterator[None]:
    """Turn what the user can put right into one red message and exit code 2, and an interruption into advice."""
    if threads is not None:
        torch.set_num_threads(threads)
    errors = Console(stderr=True)
    try:
        yield
    except (ModelsError, DiscreteInferenceError) as error:
        message = " ".join([str(error), *getattr(error, "__notes__", [])])
        errors.print(f"[red]Error: {escape(message)}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(BAD_INPUT) from error
    except OSError as error:
        about = "" if error.filename is None else f"{error.filename}: "
        message = " ".join([f"{about}{error.strerror or error}.", *getattr(error, "__notes__", [])])
        errors.print(f"[red]Error: {escape(message)}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(BAD_INPUT) from error
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
        asked = str(error).split("tried to allocate ")[-1].split(". ")[0]
        of = f" ({asked})" if "tried to allocate" in str(error) else ""
        message = f"There is not enough memory for this{of}; ask for fewer latents, units, samples or data at once."
        errors.print(f"[red]Error: {message}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(BAD_INPUT) from error
    except Interrupted as interruption:
        again = shlex.join([*(argument for argument in sys.argv[1:] if argument != "--resume"), "--resume"])
        rank, ranks = rank_of()
        start = "python" if ranks == 1 else f"torchrun --nproc-per-node {ranks}"
        advice = f"Interrupted: {interruption}; all is saved. Go on with:\n  {start} -m models {again}"
        if rank == 0:
            errors.print(advice, soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(128 + interruption.number) from interruption
    except KeyboardInterrupt as interruption:
        errors.print("Interrupted: what had been saved before is as it was.", soft_wrap=True, highlight=False)
        raise typer.Exit(128 + signal.SIGINT) from interruption


@app.command()
@takes_settings
def train(
    program: Program,
    settings: dict[str, Any],
    estimator: Annotated[str | None, typer.Option(help="A name from `list`.  [default: nvil]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/PROGRAM-DATA-ESTIMATOR]")] = None,
    resume: Resume = False,
    data_dir: DataDir = None,
    checkpoint_every: CheckpointEvery = 500,
    bound_samples: BoundSamples = 100,
    monitor_every: Annotated[int, typer.Option(help="Steps between two looks at the gradients; 0: none.", min=0)] = 200,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into --out.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Train one program under one estimator; report test ELBO and importance-weighted bound, and save pictures."""
    with reported(threads):
        rank, ranks = rank_of()
        if resume:
            if out is None:
                raise ConfigError("--resume needs --out, the folder of the run to go on with.")
            config = resumed(out, {"program": program, "estimator": estimator, **settings})
        else:
            config = _configure(program, estimator or "nvil", settings)
            out = out or Path("runs") / f"{config.program}-{config.data}-{config.estimator}"
            resume = rank == 0 and was_broken_off(out)
            if rank == 0 and not resume:
                refuse_used_folder(out)
        data = load_data(config.data, data_dir)
        how: dict[str, Any] = {"resume": resume, "checkpoint_every": checkpoint_every}
        how |= {"monitor_every": monitor_every, "tensorboard": tensorboard}
        if ranks > 1 and config.device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if rank > 0:
            run_beside(config, data, out, **how)
            return
        say(f"{data.origin}{_binarised(config)}; results in {out}{f'; {ranks} processes' if ranks > 1 else ''}")
        result = run(config, data, out, bound_samples=bound_samples, **how)
        show(run_table(result))
        for path in picture_run(result, data, out):
            say(f"picture: {path}")


@app.command()
@takes_settings
def compare(
    program: Program,
    settings: dict[str, Any],
    estimators: Annotated[
        str, typer.Option(help="Names from `list`, separated by commas.")
    ] = "reinforce,nvil,rloo,gumbel_softmax",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs.  [default: runs/compare-PROGRAM-DATA]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the same comparison in --out.")] = False,
    data_dir: DataDir = None,
    checkpoint_every: CheckpointEvery = 500,
    bound_samples: BoundSamples = 100,
    threads: Threads = None,
) -> None:
    """Train one program from the same start under several estimators; compare their gradients where the best ends."""
    with reported(threads):
        if rank_of()[1] > 1:
            raise ConfigError("compare runs in one process: start it without torchrun.")
        names = [name.strip() for name in estimators.split(",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"--estimators is {estimators!r}; expected different names separated by commas.")
        configs = [_configure(program, name, _temperature_where_it_has_one(name, settings)) for name in names]
        out = out or Path("runs") / f"compare-{program}-{configs[0].data}"
        if not resume:
            refuse_used_folder(out, ["results.json", *RUN_FILES])
            for name in names:
                refuse_used_folder(out / name)
        data = load_data(configs[0].data, data_dir)
        say(f"{data.origin}{_binarised(configs[0])}; results in {out}")
        comparison = run_comparison(
            configs, data, out, resume=resume, checkpoint_every=checkpoint_every, bound_samples=bound_samples
        )
        write_atomically(out / "results.json", json.dumps(comparison.to_dict(), indent=2) + "\n")
        show(comparison_table([comparison]))
        show(comparison.measured.table())
        picture_comparisons([comparison], data, out / "comparison.png")
        comparison.measured.plot(out / "gradients.png")
        say(f"pictures: {out / 'comparison.png'}, {out / 'gradients.png'}\nfigures: {out / 'results.json'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the picture and the figures.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1)] = 1500,
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.", min=0, max=LARGEST_SEED)] = 0,
    threads: Annotated[int, typer.Option(help="Torch's threads: so small a network gains nothing by two.", min=1)] = 1,
) -> None:
    """Train both programs on the digits under several estimators: one table, one picture."""
    with reported(threads):
        refuse_used_folder(out)
        started = time.perf_counter()
        comparisons = demonstrate(out, steps, seed)
        show(comparison_table(comparisons))
        say(f"picture: {out / 'demo.png'}\nfigures: {out / 'results.json'}")
        say(f"took {time.perf_counter() - started:.0f} s with {threads} thread{'s' * (threads > 1)}")


@app.command()
def bandit(
    log: Annotated[str, typer.Option(help="open-bandit (the package obp's) or simulated.")] = "simulated",
    estimators: Annotated[
        str, typer.Option(help="Names from `list`, or auto, separated by commas.")
    ] = "auto,reinforce,rloo,carms,unordered_set",
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1)] = 2000,
    particles: Annotated[int, typer.Option(help="Choices drawn in each step.", min=1)] = 16,
    entropy_weight: Annotated[float, typer.Option(help="Of the policy's entropy beside the reward.", min=0.0)] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0, max=LARGEST_SEED)] = 0,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the figures.  [default: runs/bandit-LOG]")] = None,
    threads: Threads = 1,
) -> None:
    """Learn a categorical policy from a bandit's log under several estimators, against the exact optimum."""
    with reported(threads):
        names = [name.strip() for name in estimators.split(",") if name.strip()]
        if not names:
            raise ConfigError(f"--estimators is {estimators!r}; expected names separated by commas.")
        out = out or Path("runs") / f"bandit-{log}"
        refuse_used_folder(out, ["results.json"])
        rounds = load_log(log, data_dir)
        say(rounds.origin)
        runs = [
            learn_policy(
                rounds,
                name,
                steps=steps,
                particles=particles,
                learning_rate=learning_rate,
                entropy_weight=entropy_weight,
                seed=seed,
            )
            for name in names
        ]
        write_atomically(out / "results.json", json.dumps([run.to_dict() for run in runs], indent=2) + "\n")
        show(bandit_table(rounds, runs))
        say(f"figures: {out / 'results.json'}")


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run under way, the --out of `train`.")],
    every: Annotated[float, typer.Option(help="Seconds between two looks; 0: one look.", min=0.0)] = 5.0,
    picture: Annotated[Path | None, typer.Option(help="A file for the curves, renewed at each look.")] = None,
) -> None:
    """Draw the curves of a run under way, with its steps a second and the time left, until it ends."""
    with reported():
        console = Console()
        with Live(console=console, auto_refresh=False) as live:
            while True:
                progress = Progress.of(folder)
                live.update(progress.drawn(console.width), refresh=True)
                if picture is not None:
                    progress.picture(picture)
                if progress.ended or every == 0:
                    return
                time.sleep(every)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, the --out of `train`.")],
    out: Annotated[Path | None, typer.Option(help="The file.  [default: report.html in the folder]")] = None,
) -> None:
    """Write one HTML file on a run: its figures, curves, samples, gradient health and settings."""
    with reported():
        say(f"report: {write_report(folder, out)}")


@app.command(name="list")
def list_choices() -> None:
    """Show which program runs under which estimators (each is tried), data sets and binarisations."""
    for table in choices():
        show(table)


def _binarised(config: RunConfig) -> str:
    return "" if config.binarisation == "none" else f"; {config.binarisation} binarisation"


def _configure(program: str, estimator: str, settings: dict[str, Any]) -> RunConfig:
    config = configure(program, estimator, **settings)
    if settings["particles"] is None and config.particles > 1:
        say(f"{estimator} needs at least {config.particles} particles and gets them; --particles sets another number.")
    return config


def _temperature_where_it_has_one(estimator: str, settings: dict[str, Any]) -> dict[str, Any]:
    """In a comparison, a temperature is meant for the relaxed estimators among the rest."""
    return settings if has_temperature(estimator) else {**settings, "temperature": None}

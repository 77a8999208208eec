"""How noisy each estimator of the importance-weighted bound's gradient is, and how that changes with the particles."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import xarray as xr
from torch import Tensor

from benchmarks.noise.variance import train_point
from models.data.catalogue import load_images
from models.data.images import Images, binarise_once
from models.runs.config import RunConfig, configure
from models.runs.evaluation import EVALUATION_SEED, bounds, isolated
from models.runs.training import Training
from pyro_discrete import NVIL, VIMCO, TraceIWELBO
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.diagnostics import compare_estimators
from pyro_discrete.errors import near_matches

__all__ = ["ESTIMATORS", "Row", "measure"]

ESTIMATORS: dict[str, Callable[[int], TraceIWELBO]] = {
    "reinforce": lambda k: TraceIWELBO("reinforce", num_particles=k),
    "nvil": lambda k: TraceIWELBO(NVIL(variance_normalisation=False), num_particles=k),
    "vimco": lambda k: TraceIWELBO("vimco", num_particles=k),
    "vimco, arithmetic": lambda k: TraceIWELBO(VIMCO("arithmetic"), num_particles=k),
    "rloo, 2 outer samples": lambda k: TraceIWELBO("rloo", num_particles=k, num_outer_samples=2),
    "disarm": lambda k: TraceIWELBO("disarm", num_particles=k),
    "muprop": lambda k: TraceIWELBO("muprop", num_particles=k),
    "rebar": lambda k: TraceIWELBO("rebar", num_particles=k),
    "gumbel_softmax": lambda k: TraceIWELBO("gumbel_softmax", num_particles=k),
    "straight_through_gumbel_softmax": lambda k: TraceIWELBO("straight_through_gumbel_softmax", num_particles=k),
    "reweighted_wake_sleep": lambda k: TraceIWELBO("reweighted_wake_sleep", num_particles=k),
}
"""Label -> the objective of so many particles."""


@dataclass(frozen=True)
class Row:
    """One estimator at K particles.

    - `evaluations`: of the model a draw. `ms`: of the processor, see `times`.
    - `guide`, `model`: variance summed over their parameters, (nats per image)².
    - `guide_signal`, `model_signal`: norm of the mean gradient of the bound over the root of that variance. For biased
      estimators too, the norm is that of the bound's gradient; NaN where it is lost in the reference's noise.
    """

    estimator: str
    unbiased: bool
    draws: int
    evaluations: int
    ms: float
    guide: float
    model: float
    guide_signal: float
    model_signal: float


def measure(
    training: Training,
    images: Images,
    particles: int,
    names: Sequence[str],
    *,
    draws: int,
    seconds: float,
    warm_up_steps: int,
) -> dict[str, Any]:
    """The named estimators at the program's parameters, on the first batch: the bound there, and a row for each."""
    config, program = training.config, training.program
    batch = binarise_once(images.train[: config.batch_size], config.binarisation)
    elbos = {name: ESTIMATORS[name](particles) for name in names}
    ms = times(training, batch, elbos)
    with isolated(config.seed):
        found = compare_estimators(
            program.model,
            program.guide,
            batch,
            estimators=elbos,
            objective=TraceIWELBO,
            draws=draws,
            seconds=seconds,
            warm_up=warm_up_steps,
            next_batch=training.stream.next_batch,
            seed=EVALUATION_SEED,
        )
    rows = [_row(found.dataset, name, ms[name], config.batch_size) for name in names if name not in found.left_out]
    return {
        "bound": bounds(program, batch, particles).importance_weighted,
        "reference": found.reference,
        "rows": [asdict(row) for row in rows],
        "left_out": dict(found.left_out),
    }


def times(training: Training, batch: Tensor, elbos: Mapping[str, TraceIWELBO], rounds: int = 3) -> dict[str, float]:
    """Least ms of a draw, backward pass included, in turns: the processor's, of one thread."""
    program = training.program
    taken: dict[str, list[float]] = {name: [] for name in elbos}
    with isolated(EVALUATION_SEED):
        for elbo in elbos.values():
            elbo.loss(program.model, program.guide, batch)
        for _ in range(rounds):
            for name, elbo in elbos.items():
                program.zero_grad()
                started = time.process_time()
                elbo.differentiable_loss(program.model, program.guide, batch).backward()
                taken[name].append(1000 * (time.process_time() - started))
    program.zero_grad()
    return {name: min(each) for name, each in taken.items()}


def timed_anew(training: Training, images: Images, particles: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """The same result with the times measured again."""
    batch = binarise_once(images.train[: training.config.batch_size], training.config.binarisation)
    ms = times(training, batch, {one["estimator"]: ESTIMATORS[one["estimator"]](particles) for one in result["rows"]})
    return {**result, "rows": [{**one, "ms": ms[one["estimator"]]} for one in result["rows"]]}


def _row(dataset: xr.Dataset, name: str, ms: float, batch: int) -> Row:
    one = dataset.sel(estimator=name)
    guide = one["parameter"].str.contains("encoder.", regex=False)
    variances, signals = [], []
    for part in (one.sel(parameter=guide), one.sel(parameter=~guide)):
        variance = float(part["variance"].sum())
        # the norm of a mean of draws is too large by what noise adds to it
        noise = float((part["bias_error"] ** 2).sum()) - variance / int(one["draws"])
        squared_norm = float((part["gradient_norm"] ** 2).sum()) - noise
        variances.append(variance / batch**2)
        signals.append(math.sqrt(squared_norm / variance) if squared_norm > 0 and variance > 0 else math.nan)
    return Row(
        name,
        bool(one["unbiased"]),
        int(one["draws"]),
        int(one["evaluations"]),
        ms,
        *variances,
        *signals,
    )


def section(results: Mapping[str, Any]) -> str:
    """The results as markdown: a table for each number of particles."""
    lines = []
    heads = ["gradient", "draws", "evaluations", "ms", "guide", "model", "guide x ms", "signal, guide", "signal, model"]
    for particles, result in results["particles"].items():
        lines += [f"| K = {particles} (bound {result['bound']:.1f}) | " + " | ".join(heads) + " |"]
        lines += ["| --- " * (len(heads) + 1) + "|"]
        for one in sorted(result["rows"], key=lambda r: r["guide"]):
            numbers = [one["draws"], one["evaluations"], one["ms"], one["guide"], one["model"]]
            numbers += [one["guide"] * one["ms"], one["guide_signal"], one["model_signal"]]
            kind = "unbiased" if one["unbiased"] else "biased"
            lines.append(f"| `{one['estimator']}` | {kind} | " + " | ".join(map(_short, numbers)) + " |")
        lines += ["", *(f"- `{name}`: {reason}" for name, reason in result["left_out"].items())]
    return "\n".join(lines) + "\n"


def _short(number: float) -> str:
    if isinstance(number, int) or number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _chosen(given: str) -> list[str]:
    names = [name.strip() for name in given.split(";") if name.strip()] or list(ESTIMATORS)
    for name in names:
        if name not in ESTIMATORS:
            raise typer.BadParameter(f"unknown name {name!r}. {near_matches(name, ESTIMATORS)}")
    return names


def main(
    particles: Annotated[str, typer.Option(help="Numbers of particles, with commas.")] = "2,5,10",
    estimators: Annotated[str, typer.Option(help="Labels, with semicolons.  [default: all]")] = "",
    draws: Annotated[int, typer.Option(help="Gradient estimates for each variance.", min=2)] = 300,
    seconds: Annotated[float, typer.Option(help="An estimator that is slower makes fewer draws.", min=0.01)] = 10.0,
    steps: Annotated[int, typer.Option(help="Training steps of rloo to the shared point.", min=1)] = 500,
    warm_up_steps: Annotated[int, typer.Option(help="Steps for what an estimator learns.", min=0)] = 100,
    data: Annotated[str, typer.Option(help="fashion-mnist or digits.")] = "fashion-mnist",
    latents: Annotated[int | None, typer.Option(help="Units of the belief network.  [default: 200]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in the batch.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.")] = 0,
    times_only: Annotated[bool, typer.Option("--times-only", help="Of what --out holds; variances stay.")] = False,
    out: Annotated[Path, typer.Option(help="Folder; other numbers of particles there keep their place.")] = Path(
        "runs/bound_variance"
    ),
) -> None:
    """Measure estimators of the importance-weighted bound at a shared point: bound_variance.json, bound_variance.md."""
    names = _chosen(estimators)
    torch.set_num_threads(1)
    images: Images = load_images(data)
    settings = {"data": images.name, "latents": latents, "steps": steps, "batch_size": batch_size, "seed": seed}
    config: RunConfig = configure("sbn", "rloo", **settings)
    training = train_point(config, images)
    kept = out / "bound_variance.json"
    out.mkdir(parents=True, exist_ok=True)
    limits = {"draws": draws, "seconds": seconds, "warm_up_steps": warm_up_steps}
    for count in map(str, map(int, particles.split(","))):
        known = json.loads(kept.read_text())["particles"] if kept.exists() else {}
        if times_only and count not in known:
            raise typer.BadParameter(f"{kept} holds no K = {count} to time anew", param_hint="--times-only")
        if times_only:
            result = timed_anew(training, images, int(count), known[count])
        else:
            result = measure(training, images, int(count), names, **limits)
        ordered = dict(sorted({**known, count: result}.items(), key=lambda each: int(each[0])))
        results = {"config": config.to_dict(), "particles": ordered}
        write_atomically(kept, json.dumps(results, indent=2) + "\n")
        write_atomically(out / "bound_variance.md", section(results))
    typer.echo((out / "bound_variance.md").read_text())


if __name__ == "__main__":
    typer.run(main)

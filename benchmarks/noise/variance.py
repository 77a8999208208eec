"""How noisy each estimator's gradient is at one shared point, at equal evaluations of the model and at equal time."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from models.data.catalogue import load_images
from models.data.images import Images, binarise_once
from models.programs.program import Program
from models.reports.pictures import PALETTE
from models.runs.config import RunConfig, build_elbo, configure
from models.runs.estimators import bias
from models.runs.evaluation import EVALUATION_SEED, gradient_noise, isolated
from models.runs.training import Training
from pyro_discrete import NVIL, available_estimators
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.diagnostics.gradient_draws import train_own_parts
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import DiscreteInferenceError, near_matches
from pyro_discrete.programs.pair import Pair

__all__ = ["NETWORKS", "Measured", "measure", "times", "train_point"]

NETWORKS: dict[str, tuple[str, dict[str, int]]] = {
    "linear": ("sbn", {}),
    "non-linear": ("sbn", {"hidden_layers": 2}),
    "two-layer": ("sbn", {"layers": 2}),
    "categorical": ("categorical_vae", {}),
}
"""Program and settings: 200 units (a layer) or 20 x 10 one-hot variables; hidden layers of 200 units."""
TRAINED_WITH = "rloo"
"""Serves every site, so that all programs come to their shared point in the same way."""
LEAST_DRAWS = 10
MARKS = (("guide_x_evaluations", "o", PALETTE[0], "evaluations"), ("guide_x_ms", "D", PALETTE[1], "ms"))


@dataclass(frozen=True)
class Measured:
    """One estimator at the shared point.

    - `evaluations`: rows x particles, evaluations of the model a draw. `ms`: median of a draw (see `times`).
    - `guide`, `model`: variance summed over their parameters, (nats per image)².
    """

    estimator: str
    bias: str
    evaluations: int
    draws: int
    ms: float
    guide: float
    model: float

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "guide_x_evaluations": self.guide * self.evaluations,
            "guide_x_ms": self.guide * self.ms,
            "model_x_evaluations": self.model * self.evaluations,
            "model_x_ms": self.model * self.ms,
        }


def train_point(config: RunConfig, images: Images) -> Training:
    """A short run to the parameters at which all estimators are measured."""
    with isolated(config.seed):
        training = Training(config, images)
        training.run()
    return training


def measure(
    point: Mapping[str, Tensor],
    config: RunConfig,
    images: Images,
    *,
    draws: int,
    seconds: float,
    warm_up_steps: int,
    elbo: DiscreteELBO | None = None,
) -> Measured:
    """Variance and time of the config's estimator (or of `elbo`) at `point`, on the first batch of training images.

    It makes `draws` draws, or as many as take about `seconds`. Raises the library's errors where it does not serve.
    """
    with isolated(config.seed):
        training = Training(config, images)
        program = training.program
        program.load_state_dict(dict(point))
        elbo = build_elbo(config, rescaled=False) if elbo is None else elbo
        batch = binarise_once(images.train[: config.batch_size], config.binarisation)
        elbo.loss(program.model, program.guide, batch)
        if any(state.is_floating_point() for state in [*elbo.parameters(), *elbo.buffers()]):
            pair = Pair(program.model, program.guide, (batch,), {})
            with tqdm(total=warm_up_steps, desc="warming up", leave=False, disable=None) as bar:
                stream, rate = training.stream, config.estimator_lr
                train_own_parts(elbo, pair, warm_up_steps, rate, bar.update, stream.next_batch)
    ms = _one_draw_ms(program, elbo, batch)
    number = max(min(draws, int(1000 * seconds / ms)), min(draws, LEAST_DRAWS))
    with tqdm(
        total=number, desc=f"{config.program}: {config.estimator}", unit="draw", leave=False, disable=None
    ) as bar:
        noise = gradient_noise(program, elbo, batch, number, bar.update)
    evaluations = elbo.plan.evaluations
    kind = "unbiased" if config.estimator == NVIL.name else bias(config.estimator)  # measured without its rescaling
    return Measured(config.estimator, kind, evaluations, number, ms, noise.guide, noise.model)


def _one_draw_ms(program: Program, elbo: DiscreteELBO, batch: Tensor) -> float:
    """Median of five, for how many draws there is time."""
    taken: list[float] = []
    with isolated(EVALUATION_SEED):
        for _ in range(5):
            program.zero_grad()
            started = time.perf_counter()
            elbo.differentiable_loss(program.model, program.guide, batch).backward()
            taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def times(configs: Sequence[RunConfig], images: Images, rounds: int = 15, seconds: float = 8.0) -> dict[str, float]:
    """Median ms of a draw of each estimator, in turns, so that a busy machine slows all of them alike.

    It is the processor's time of one thread, backward pass included. One that has had its `seconds` sits out.
    """
    taken: dict[str, list[float]] = {config.estimator: [] for config in configs}
    runs = [_Timed(config, images) for config in configs]
    for _ in tqdm(range(rounds), desc="times", leave=False, disable=None):
        for run in runs:
            so_far = taken[run.config.estimator]
            if len(so_far) < 3 or sum(so_far) < 1000 * seconds:
                so_far.append(run.ms())
    return {name: statistics.median(ms) for name, ms in taken.items()}


class _Timed:
    """An estimator at the start of a run: its times do not depend on the parameters."""

    def __init__(self, config: RunConfig, images: Images) -> None:
        self.config, self.training = config, Training(config, images)
        self.batch = self.training.stream.next_batch()

    def ms(self) -> float:
        """Of one draw."""
        program, elbo = self.training.program, self.training.elbo
        with isolated(EVALUATION_SEED):
            program.zero_grad()
            started = time.process_time()
            elbo.differentiable_loss(program.model, program.guide, self.batch).backward()
            return 1000 * (time.process_time() - started)


def measure_network(
    network: str, estimators: Sequence[str], images: Images, settings: Mapping[str, Any], **limits: Any
) -> dict[str, Any]:
    """All estimators on one network; those that do not serve it stand there with the library's reason."""
    program, shape = NETWORKS[network]
    shared = {"data": images.name, **shape, **settings}
    start = train_point(configure(program, TRAINED_WITH, **{**shared, "particles": None}), images)
    point = start.program.state_dict()
    measured: list[Measured] = []
    left_out: dict[str, str] = {}
    for name in tqdm(estimators, desc=network, unit="estimator", disable=None):
        config = configure(program, name, **{**shared, "estimator_lr": 1e-2})
        try:
            measured.append(measure(point, config, images, **limits))
        except DiscreteInferenceError as error:
            left_out[name] = str(error).split(". ")[0].rstrip(".") + "."
    measured.sort(key=lambda one: one.guide * one.evaluations)
    result = {
        "config": start.config.to_dict(),
        "limits": limits,
        "elbo_at_point": -(start.loss or 0.0) / start.config.batch_size,
        "measured": [one.to_dict() for one in measured],
        "left_out": left_out,
    }
    return timed_anew(network, result, images, settings)


def timed_anew(network: str, result: Mapping[str, Any], images: Images, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same result with the times measured again."""
    program, shape = NETWORKS[network]
    shared = {"data": images.name, **shape, **settings}
    known = [{field.name: one[field.name] for field in fields(Measured)} for one in result["measured"]]
    ms = times([configure(program, one["estimator"], **shared) for one in known], images)
    return {**result, "measured": [Measured(**{**one, "ms": ms[one["estimator"]]}).to_dict() for one in known]}


def section(results: Mapping[str, Any]) -> str:
    """The results as a section of markdown, a table for each network, sorted by variance x evaluations of the guide."""
    lines = ["## Gradient variance at equal evaluations and at equal time", ""]
    for network, result in results.items():
        config = result["config"]
        objective = f"{result['elbo_at_point']:.1f}"
        at = f"After {config['steps']} steps of `{config['estimator']}` (objective {objective} nats per image):"
        heads = ["draws", "evaluations", "ms", "guide", "model", "guide x evaluations", "guide x ms", "model x ms"]
        lines += [at, "", f"| {network}, {config['data']} | gradient | " + " | ".join(heads) + " |"]
        lines.append("| --- " * (len(heads) + 2) + "|")
        for one in result["measured"]:
            numbers = [_short(one[head.replace(" ", "_")]) for head in heads]
            lines.append(f"| `{one['estimator']}` | {one['bias']} | " + " | ".join(numbers) + " |")
        if result["left_out"]:
            lines += ["", "Left out:", ""]
            lines += [f"- `{name}`: {reason}" for name, reason in result["left_out"].items()]
        lines.append("")
    return "\n".join(lines)


def _short(number: float) -> str:
    if isinstance(number, int) or number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _chosen(given: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a list with commas; all of them if it is empty."""
    names = [name.strip() for name in given.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"unknown name {name!r}. {near_matches(name, known)}", param_hint=option)
    return names


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Write one panel for each network: a row for each estimator, best at equal evaluations on top."""
    across = min(2, len(results))
    down = math.ceil(len(results) / 2)
    rows = max(len(result["measured"]) for result in results.values())
    figure = Figure(figsize=(7.5 * across, (0.33 * rows + 1.6) * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (network, result) in zip(panels, results.items(), strict=False):
        _panel(axes, network, result)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    data = next(iter(results.values()))["config"]["data"]
    figure.suptitle(
        f"What a gradient estimate of given precision costs on {data}: variance of the guide's gradient\n"
        "x evaluations of the model (circles), x ms (diamonds); hollow: biased; left is better",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, network: str, result: Mapping[str, Any]) -> None:
    measured = [one for one in reversed(result["measured"]) if one["guide"] > 0]
    for height, one in enumerate(measured):
        ends = [one[key] for key, *_ in MARKS]
        axes.plot(ends, [height, height], color="#BBBBBB", linewidth=1, zorder=1)
        for key, marker, colour, _ in MARKS:
            face = "white" if one["bias"] == "biased" else colour
            axes.plot(one[key], height, marker=marker, color=colour, markerfacecolor=face, markersize=6, zorder=2)
    for key, _, colour, cost in MARKS:
        if not measured:
            continue
        right = measured[-1][key] == max(measured[-1][other] for other, *_ in MARKS)
        axes.annotate(
            f"x {cost}",
            (measured[-1][key], len(measured) - 1),
            xytext=(-4 if right else 4, 7),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom",
            color=colour,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.06)
    axes.set_yticks(range(len(measured)), [one["estimator"] for one in measured], fontsize=8)
    axes.set_title(f"{network}, after {result['config']['steps']} training steps", fontsize=10)
    axes.set_xlabel("(nats per image)² x evaluations, (nats per image)² x ms; log scale", fontsize=9)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main(
    programs: Annotated[str, typer.Option(help=f"Of {', '.join(NETWORKS)}; with commas.  [default: all]")] = "",
    estimators: Annotated[str, typer.Option(help="Names, with commas.  [default: all that there are]")] = "",
    draws: Annotated[int, typer.Option(help="Gradient estimates for each variance.", min=2)] = 1000,
    seconds: Annotated[float, typer.Option(help="An estimator that is slower makes fewer draws.", min=0)] = 25.0,
    steps: Annotated[int, typer.Option(help="Training steps to the shared point.", min=1)] = 500,
    warm_up_steps: Annotated[int, typer.Option(help="Steps for what an estimator learns.", min=0)] = 300,
    data: Annotated[str, typer.Option(help="fashion-mnist or digits.")] = "fashion-mnist",
    latents: Annotated[int | None, typer.Option(help="Units, or one-hot variables.  [default: 200; 20]")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in the batch.", min=1)] = 100,
    particles: Annotated[int | None, typer.Option(help="Of each estimator.  [default: the fewest]", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of parameters, batches and draws.")] = 0,
    times_only: Annotated[bool, typer.Option("--times-only", help="Of what --out holds; variances stay.")] = False,
    out: Annotated[Path, typer.Option(help="Folder; a program measured there before keeps its place.")] = Path(
        "runs/variance"
    ),
) -> None:
    """Measure the gradient variance of every estimator at a shared point: variance.json, variance.md, variance.png."""
    networks = _chosen(programs, list(NETWORKS), "--programs")
    names = _chosen(
        estimators, [n for n, e in available_estimators().items() if not e.cls.importance_weighted], "--estimators"
    )
    torch.set_num_threads(1)
    images = load_images(data)
    settings = {"latents": latents, "steps": steps, "batch_size": batch_size, "seed": seed, "particles": particles}
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "variance.json"
    for network in networks:
        limits = {"draws": draws, "seconds": seconds, "warm_up_steps": warm_up_steps}
        results = json.loads(kept.read_text()) if kept.exists() else {}
        if times_only and network not in results:
            raise typer.BadParameter(f"{kept} holds no {network!r} to time anew", param_hint="--times-only")
        if times_only:
            result = timed_anew(network, results[network], images, settings)
        else:
            result = measure_network(network, names, images, settings, **limits)
            results = json.loads(kept.read_text()) if kept.exists() else {}  # another run may have added its own
        results = {name: r for name in NETWORKS if (r := {**results, network: result}.get(name)) is not None}
        write_atomically(kept, json.dumps(results, indent=2) + "\n")
        write_atomically(out / "variance.md", section(results))
        picture(results, out / "variance.png")
    typer.echo((out / "variance.md").read_text())


if __name__ == "__main__":
    typer.run(main)

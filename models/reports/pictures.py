"""Pictures of a run and of comparisons, each to be understood without the text around it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models.data.dataset import Dataset
from models.data.images import Images
from models.programs.bandit import LearnedPolicy
from models.reports.class_pictures import draw_found
from models.runs.comparison import Comparison
from models.runs.config import size_of
from models.runs.evaluation import reconstruct, sample_prior
from models.runs.training import RunResult
from pyro_discrete.checkpoints import write_atomically

__all__ = ["PALETTE", "picture_comparisons", "picture_policies", "picture_run"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which stay distinct for colour-blind readers."""
GREY = "#666666"
ACROSS, FEW = 10, 5
"""Images in a row, of a run and of a comparison."""


def picture_run(result: RunResult, data: Dataset, out: Path) -> list[Path]:
    """Write `curves.png` into the folder, and what was learned; returns the paths.

    Of images, that is `reconstructions.png` and `samples.png`; of latents that are sought, `found.png`;
    `gradients.png` where they were monitored.
    """
    config, program, bounds = result.training.config, result.training.program, result.bounds
    title = f"{config.program} on {config.data}, estimator {config.estimator}"

    curves = Figure(figsize=(8, 4.5), layout="constrained")
    axes = curves.subplots()
    nats = f"nats per {data.element}"
    _draw_run_curves(axes, result, nats)
    axes.set_title(
        f"{title}, after {result.training.step} steps:\ntest ELBO {bounds.elbo:.2f}, "
        f"{bounds.samples}-sample bound {bounds.importance_weighted:.2f} {nats}",
        fontsize=10,
    )

    figures = {"curves": curves}
    if program.finds:
        figures["found"] = Figure(figsize=(9, 5.5), layout="constrained")
        draw_found(figures["found"].subplots(), program, data, PALETTE)
        figures["found"].suptitle(title, fontsize=10)
    if isinstance(data, Images):
        figures |= _image_figures(result, data, title)
    if result.monitor.records:
        figures["gradients"] = result.monitor.plot()
        figures["gradients"].suptitle(title, fontsize=10)
    return _save(figures, out)


def _image_figures(result: RunResult, images: Images, title: str) -> dict[str, Figure]:
    program = result.training.program
    reconstructions = Figure(figsize=(8, 2.5), layout="constrained")
    pairs = torch.cat([result.test[:ACROSS], reconstruct(program, result.test[:ACROSS])])
    _draw_images(reconstructions.subplots(), pairs, images.shape, ["binarised\ntest image", "reconstruction"])
    reconstructions.suptitle(f"{title}\nreconstruction: mean image given one hard draw from the guide", fontsize=10)

    samples = Figure(figsize=(8, 4.2), layout="constrained")
    _draw_images(samples.subplots(), sample_prior(program, 4 * ACROSS, images.train.shape[1]), images.shape)
    samples.suptitle(f"{title}\nmean images given latents drawn from the model's prior", fontsize=10)

    return {"reconstructions": reconstructions, "samples": samples}


def picture_comparisons(comparisons: Sequence[Comparison], data: Dataset, path: Path) -> None:
    """Write one picture: a row for each program, with learning curves, gradient noise and what the best has learned."""
    names = dict.fromkeys(row.estimator for comparison in comparisons for row in comparison.rows)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    figure = Figure(figsize=(15, 3.9 * len(comparisons) + 0.5), layout="constrained")
    grid = figure.subplots(len(comparisons), 3, squeeze=False, width_ratios=[1.25, 1, 0.9])
    for (left, middle, right), comparison in zip(grid, comparisons, strict=True):
        _draw_test_curves(left, comparison, colours, data)
        _draw_noise(middle, comparison, colours, data)
        program = comparison.best.result.training.program
        if program.finds:
            draw_found(right, program, data, PALETTE)
            right.set_title(f"learned under {comparison.best.estimator}\n{right.get_title()}", fontsize=9)
        if not isinstance(data, Images):
            continue
        test = comparison.best.result.test[:FEW]
        shown = torch.cat([test, reconstruct(program, test), sample_prior(program, FEW, test.shape[1])])
        _draw_images(right, shown, data.shape, ["test image", "reconstruction", "sample from\nthe model"], FEW)
        right.set_title(f"learned under\n{comparison.best.estimator}", fontsize=10)
    runs = sum(len(comparison.rows) for comparison in comparisons)
    figure.suptitle(
        f"One program, several gradient estimators: what each reaches, how noisy it is ({runs} runs on {data.name})",
        fontsize=12,
    )
    _save({path.stem: figure}, path.parent)


def picture_policies(runs: Sequence[LearnedPolicy], log: str, path: Path) -> None:
    """Write one picture of policies learned from a log: what each still lacks of the best policy's reward, by step."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = []
    for i, run in enumerate(runs):
        steps, expected = [step for step, _ in run.trajectory], [reward for _, reward in run.trajectory]
        lacking = [100 * (1 - reward / run.optimum) for reward in expected]
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(steps, lacking, color=colour, linewidth=1.6)
        ends.append((steps[-1], lacking[-1], f"{lacking[-1]:.2g} %  {_wrapped(run.estimator)}", colour))
    axes.set_ylim(bottom=0)
    _label_ends(axes, ends)
    axes.set_title(
        f"policies learned from the log {log!r}: what is lacking of the best policy's reward,\n"
        f"both by the log's estimates; {runs[0].particles} choices drawn a step",
        fontsize=10,
    )
    _finish(axes, "training step", "lacking of the best reward (percent), lower is better")
    _save({path.stem: figure}, path.parent)


def _draw_run_curves(axes: Axes, result: RunResult, nats: str) -> None:
    steps, training = result.metrics.curve("smoothed")
    axes.plot(steps, training, color=PALETTE[0], linewidth=1.2, alpha=0.8)
    tested, test = result.metrics.curve("test_elbo")
    if tested[-1] == result.training.step:  # at the end from many draws
        test[-1] = result.bounds.elbo
    axes.plot(tested, test, color=PALETTE[1], marker="o", markersize=3)
    _label_ends(
        axes,
        [
            (steps[-1], training[-1], "training objective\n(running mean)", PALETTE[0]),
            (tested[-1], test[-1], f"discrete test ELBO\n(hard samples; {test[-1]:.2f})", PALETTE[1]),
        ],
    )
    _finish(axes, "training step", f"bound ({nats}), higher is better")


def _draw_test_curves(axes: Axes, comparison: Comparison, colours: dict[str, str], data: Dataset) -> None:
    ends = []
    values: list[float] = []
    for row in comparison.rows:
        steps, curve = row.result.metrics.curve("test_elbo")
        axes.plot(steps, curve, color=colours[row.estimator], linewidth=1.6)
        label = f"{row.result.bounds.elbo:.2f}  {_wrapped(row.estimator)}"
        ends.append((steps[-1], curve[-1], label, colours[row.estimator]))
        values += curve
    # A run that dives first would flatten all the rest: cut off what lies far below every start and end.
    lowest = min(min(row.result.metrics.curve("test_elbo")[1][i] for row in comparison.rows) for i in (0, -1))
    span = max(values) - lowest
    axes.set_ylim(bottom=max(min(values) - 0.05 * span, lowest - 0.3 * span))
    _label_ends(axes, ends)
    config = comparison.config
    size = size_of(config)
    axes.set_title(
        f"{config.program} ({size}): discrete test ELBO\n(curves: one hard sample each, labels: many)", fontsize=10
    )
    _finish(axes, "training step", f"test ELBO (nats per {data.element}), higher is better")


def _draw_noise(axes: Axes, comparison: Comparison, colours: dict[str, str], data: Dataset) -> None:
    rows = sorted(comparison.rows, key=lambda row: row.noise.guide)
    positive = [row.noise.guide for row in rows if row.noise.guide > 0] or [1.0]
    floor = min(positive) / 3
    for height, row in enumerate(rows):
        noise = row.noise.guide
        axes.barh(height, max(noise, floor), color=colours[row.estimator], height=0.6)
        exact = noise < floor
        axes.text(
            max(noise, floor),
            height,
            "  0 (exact)" if exact else f"  {noise:,.0f}" if noise >= 10 else f"  {noise:.2g}",
            va="center",
            fontsize=8,
            color=GREY,
        )
    axes.set_xscale("log")
    axes.set_xlim(floor / 1.5, max(positive) * 6)
    axes.set_yticks(range(len(rows)), [_wrapped(row.estimator) for row in rows], fontsize=8)
    axes.set_title(
        f"gradient variance of the guide,\nall at the parameters where {comparison.shared_point} ended",
        fontsize=10,
    )
    _finish(axes, f"summed over parameters, (nats per {data.element})², log scale; lower is better", "")


def _draw_images(
    axes: Axes, images: Tensor, shape: tuple[int, int], row_labels: Sequence[str] = (), across: int = ACROSS
) -> None:
    """Tile `images` `[rows * across, pixels]`, ink dark on white, with a thin gap between them."""
    height, width = shape
    gap = max(1, height // 8)
    tiles = images.view(-1, across, height, width)
    framed = torch.nn.functional.pad(tiles, (gap, gap, gap, gap))
    sheet = framed.permute(0, 2, 1, 3).reshape(len(tiles) * (height + 2 * gap), across * (width + 2 * gap))
    axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * (height + 2 * gap) for row in range(len(row_labels))], list(row_labels), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write `(x, y, text, colour)` beside the ends of lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    line = (high - low) * 0.055
    ordered = sorted(ends, key=lambda end: end[1])
    halves = [line * (text.count("\n") + 1) / 2 for _, _, text, _ in ordered]
    middles: list[float] = []
    edge = low
    for half, (_, y, _, _) in zip(halves, ordered, strict=True):
        middles.append(max(y, edge + half))
        edge = middles[-1] + half
    edge = high + line
    for i in reversed(range(len(middles))):
        middles[i] = min(middles[i], edge - halves[i])
        edge = middles[i] - halves[i]
    for middle, (x, y, text, colour) in zip(middles, ordered, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(axes.get_xlim()[1] + 0.03 * x, middle),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
        )


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _wrapped(name: str) -> str:
    """A long estimator's name in two lines, broken after an underscore near its middle."""
    if len(name) <= 18:
        return name
    breaks = [i + 1 for i, letter in enumerate(name) if letter == "_"]
    middle = min(breaks, key=lambda i: abs(i - len(name) / 2), default=len(name))
    return f"{name[:middle]}\n{name[middle:]}".rstrip()


def _save(figures: dict[str, Figure], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.png")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=130, format="png")
        write_atomically(paths[-1], picture.getvalue())
    return paths

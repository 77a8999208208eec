"""Pictures of what a program has found: clusters, answers by class, symbols by state, and structures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from models.data.dataset import Dataset
from models.data.documents import Documents
from models.data.graphs import Graphs
from models.data.rankings import Rankings
from models.data.sequences import PlantedMotifs
from models.data.tables import Tables
from models.programs.blocks import BlockModel
from models.programs.gmm import GaussianMixture
from models.programs.hmm import HiddenMarkovModel
from models.programs.lca import LatentClassAnalysis
from models.programs.motif import MotifPlaces
from models.programs.program import Program
from models.programs.rankings import ConsensusRanking
from models.programs.subset import SubsetRegression
from models.programs.topics import TopicModel
from models.reports.pattern_pictures import draw_blocks, draw_motif, draw_topics
from models.reports.structure_pictures import draw_season, draw_subset
from models.runs.posterior import most_probable

__all__ = ["draw_found"]

SHOWN_SYMBOLS, SHOWN_STATES = 5, 20
MARKERS = "os^DvP*X<>"


def draw_found(axes: Axes, program: Program, data: Dataset, colours: Sequence[str]) -> None:
    """Draw what the program has found in training; `colours` are used in turn."""
    with torch.no_grad():
        if isinstance(program, GaussianMixture):
            _draw_clusters(axes, program, data, colours)
        elif isinstance(program, LatentClassAnalysis):
            _draw_answers(axes, program, data)
        elif isinstance(program, HiddenMarkovModel):
            _draw_states(axes, program, data)
        elif isinstance(program, ConsensusRanking) and isinstance(data, Rankings):
            draw_season(axes, program, data)
        elif isinstance(program, SubsetRegression) and isinstance(data, Tables):
            draw_subset(axes, program, data, colours)
        elif isinstance(program, MotifPlaces) and isinstance(data, PlantedMotifs):
            draw_motif(axes, program, data)
        elif isinstance(program, BlockModel) and isinstance(data, Graphs):
            draw_blocks(axes, program, data, colours)
        elif isinstance(program, TopicModel) and isinstance(data, Documents):
            draw_topics(axes, program, data)


def _draw_clusters(axes: Axes, program: GaussianMixture, data: Dataset, colours: Sequence[str]) -> None:
    """Test points and the components' ellipses of two standard deviations, in the two main directions of the data."""
    centre = data.train.mean(0)
    directions = torch.linalg.svd(data.train - centre, full_matrices=False).Vh[:2]
    points, found = (data.test - centre) @ directions.mT, most_probable(program, data.test).cpu()
    means = (program.means.cpu() - centre) @ directions.mT
    factors = directions @ program.scale_tril.cpu()
    kinds = torch.zeros_like(found) if data.labels is None else data.labels
    for kind in kinds.unique().tolist():
        here = kinds == kind
        shades = [colours[k % len(colours)] for k in found[here].tolist()]
        marker = MARKERS[kind % len(MARKERS)]
        axes.scatter(*points[here].T.numpy(), c=shades, marker=marker, s=12, alpha=0.6, linewidths=0)
    for k, (mean, factor) in enumerate(zip(means, factors, strict=True)):
        values, vectors = torch.linalg.eigh(factor @ factor.mT)
        width, height = (4 * values.sqrt()).tolist()
        angle = float(torch.rad2deg(torch.atan2(vectors[1, 0], vectors[0, 0])))
        colour = colours[k % len(colours)]
        axes.add_patch(
            Ellipse(tuple(mean.tolist()), width, height, angle=angle, fill=False, color=colour, linewidth=1.5)
        )
    axes.set_xlabel("first principal component", fontsize=9)
    axes.set_ylabel("second", fontsize=9)
    note = "colour: component found" + ("" if data.labels is None else ", shape: true class")
    axes.set_title(f"{note},\nellipses: two standard deviations", fontsize=9)
    axes.tick_params(labelsize=8)


def _draw_answers(axes: Axes, program: LatentClassAnalysis, data: Dataset) -> None:
    """Probability of a right answer, a row for each class, the largest class on top."""
    shares = program.weights.softmax(0).cpu()
    order = shares.argsort(descending=True)
    chances = program.item_logits.sigmoid().cpu()[order]
    axes.imshow(chances.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), chance in zip(
        [(r, c) for r in range(len(chances)) for c in range(chances.shape[1])], chances.flatten().tolist(), strict=True
    ):
        ink = "white" if chance > 0.6 else "black"
        axes.text(column, row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=7, color=ink)
    items = getattr(data, "items", ()) or [str(i + 1) for i in range(chances.shape[1])]
    axes.set_xticks(range(len(items)), items, rotation=60 if len(items[-1]) > 2 else 0, fontsize=7)
    axes.set_yticks(range(len(order)), [f"class of {100 * s:.0f} %" for s in shares[order].tolist()], fontsize=8)
    axes.set_xlabel("item", fontsize=9)
    axes.set_title("right answers in percent, by class", fontsize=9)


def _draw_states(axes: Axes, program: HiddenMarkovModel, data: Dataset) -> None:
    """Each state's most probable symbols, the state that explains most symbols on top."""
    there = data.test >= 0
    found = most_probable(program, data.test).cpu()[there]
    counts = found.bincount(minlength=len(program.start))
    order = counts.argsort(descending=True)[:SHOWN_STATES].tolist()
    chances = program.emission.softmax(-1).cpu()
    vocabulary: Sequence[str] = getattr(data, "vocabulary", ())
    for row, state in enumerate(order):
        top = chances[state].topk(min(SHOWN_SYMBOLS, chances.shape[1]))
        shown = [
            f"{'space' if vocabulary[i] == ' ' else vocabulary[i]} {100 * p:.0f}"
            for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        share = 100 * int(counts[state]) / len(found)
        axes.text(0.0, row, f"{share:.0f} %", ha="right", va="center", fontsize=8, fontweight="bold")
        axes.text(0.03, row, "   ".join(shown), ha="left", va="center", fontsize=8)
    axes.set_xlim(-0.12, 1.0)
    axes.set_ylim(max(len(order), 8) - 0.5, -0.5)
    axes.axis("off")
    axes.set_title(
        "states by their share of the test symbols, each with its most\nprobable symbols (percent)", fontsize=9
    )

"""Pictures of what a program has found: clusters, answers by class, symbols by state, and structures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from torch import Tensor

from models.data.connectomes import Connectomes
from models.data.dataset import Dataset
from models.data.documents import Documents
from models.data.graphs import Graphs
from models.data.rankings import Rankings
from models.data.sequences import PlantedMotifs
from models.data.tables import Tables, Variables
from models.programs.blocks import BlockModel
from models.programs.gmm import GaussianMixture
from models.programs.hmm import HiddenMarkovModel
from models.programs.lca import LatentClassAnalysis
from models.programs.motif import MotifPlaces
from models.programs.program import Program
from models.programs.structured.matching import MatchedNeurons
from models.programs.structured.rankings import ConsensusRanking
from models.programs.structured.structure import DirectedGraph
from models.programs.structured.subset import SubsetRegression
from models.programs.topics import TopicModel
from models.reports.pattern_pictures import draw_blocks, draw_motif, draw_topics
from models.reports.structure_pictures import draw_graph, draw_matching, draw_season, draw_subset
from models.runs.graphs import draw_graphs
from models.runs.posterior import most_probable

__all__ = ["draw_found"]

SHOWN_SYMBOLS, SHOWN_STATES, MOST_NUMBERS = 24, 20, 300
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
        elif isinstance(program, MatchedNeurons) and isinstance(data, Connectomes):
            draw_matching(axes, program, data)
        elif isinstance(program, DirectedGraph) and isinstance(data, Variables):
            draw_graph(axes, draw_graphs(program, data)[1], data, colours[1])
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
        axes.scatter(*points[here].T.numpy(), c=shades, marker=marker, s=26, alpha=0.65, linewidths=0)
    handles = []
    shares = (100 * program.weights.softmax(0)).tolist()
    for k, (mean, factor) in enumerate(zip(means, factors, strict=True)):
        values, vectors = torch.linalg.eigh(factor @ factor.mT)
        width, height = (4 * values.sqrt()).tolist()
        angle = float(torch.rad2deg(torch.atan2(vectors[1, 0], vectors[0, 0])))
        colour = colours[k % len(colours)]
        axes.add_patch(
            Ellipse(tuple(mean.tolist()), width, height, angle=angle, fill=False, color=colour, linewidth=1.5)
        )
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f"component of {shares[k]:.0f} %"))
    if data.labels is not None:
        for kind in kinds.unique().tolist():
            marker = MARKERS[kind % len(MARKERS)]
            handles.append(Line2D([], [], color="#666666", marker=marker, linewidth=0, label=f"true class {kind + 1}"))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
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
    _draw_chances(axes, chances)
    items = getattr(data, "items", ()) or [str(i + 1) for i in range(chances.shape[1])]
    axes.set_xticks(range(len(items)), items, rotation=60 if len(items[-1]) > 2 else 0, fontsize=7)
    axes.set_yticks(range(len(order)), [f"class of {100 * s:.0f} %" for s in shares[order].tolist()], fontsize=8)
    axes.set_xlabel("item", fontsize=9)
    axes.set_title("right answers in percent, by class", fontsize=9)


def _draw_states(axes: Axes, program: HiddenMarkovModel, data: Dataset) -> None:
    """How probable each symbol is in each state, the state that explains most symbols on top, and what follows what."""
    there = data.test >= 0
    found = most_probable(program, data.test).cpu()[there]
    counts = found.bincount(minlength=len(program.start))
    order = counts.argsort(descending=True)[:SHOWN_STATES]
    emission, transition = (chances.softmax(-1).cpu()[order] for chances in (program.emission, program.transition))
    vocabulary: Sequence[str] = getattr(data, "vocabulary", ())
    each = max(1, SHOWN_SYMBOLS // len(order))  # of a large vocabulary, what is most probable in a state
    chosen = range(len(vocabulary))
    if len(vocabulary) > SHOWN_SYMBOLS:
        chosen = list(dict.fromkeys(emission.topk(each).indices.flatten().tolist()))
    names = [f"{100 * int(counts[state]) / len(found):.0f} %" for state in order.tolist()]
    axes.axis("off")
    left, right = axes.inset_axes((0.0, 0.0, 0.6, 1.0)), axes.inset_axes((0.7, 0.0, 0.3, 1.0))
    _draw_chances(left, emission[:, list(chosen)])
    _draw_chances(right, transition[:, order])
    symbols = ["space" if vocabulary[i] == " " else vocabulary[i] for i in chosen]
    left.set_xticks(range(len(symbols)), symbols, rotation=90 if max(map(len, symbols)) > 2 else 0, fontsize=7)
    right.set_xticks(range(len(names)), names, rotation=90 if len(names) > 5 else 0, fontsize=7)
    for side in (left, right):
        side.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylabel("state, by its share of the test symbols", fontsize=9)
    whole = len(symbols) == len(vocabulary)
    left.set_xlabel("symbol" if whole else f"the {each} most probable symbols of each state", fontsize=9)
    right.set_xlabel("next state", fontsize=9)
    axes.set_title("a state's symbols (left) and what follows it (right), in percent", fontsize=9)


def _draw_chances(axes: Axes, chances: Tensor) -> None:
    """Probabilities `[rows, columns]` as shades, with percents where there is room for them."""
    axes.imshow(chances.numpy(), cmap="Blues", vmin=0, vmax=float(chances.max()), aspect="auto")
    if chances.numel() > MOST_NUMBERS:
        return
    for (row, column), chance in zip(product(*map(range, chances.shape)), chances.flatten().tolist(), strict=True):
        ink = "white" if chance > 0.6 * float(chances.max()) else "black"
        axes.text(column, row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=6, color=ink)

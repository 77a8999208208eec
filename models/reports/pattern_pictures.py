"""Pictures of patterns that a program has found: groups of a graph, topics of documents, a motif."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from models.data.documents import Documents
from models.data.graphs import Graphs
from models.data.sequences import BASES, PlantedMotifs
from models.programs.blocks import BlockModel
from models.programs.motif import MotifPlaces
from models.programs.topics import TopicModel

__all__ = ["draw_blocks", "draw_motif", "draw_topics", "top_words"]

TOP_WORDS, MOST_TOPICS = 5, 20
SHOWN_CHANCE = 0.5
"""The least that is written into a cell of a motif's profile."""


def draw_blocks(axes: Axes, program: BlockModel, data: Graphs, colours: Sequence[str]) -> None:
    """Who is joined to whom, nodes by the group found; beside them, in colours, the groups that are known."""
    groups = program.groups.cpu()
    known = groups.new_zeros(len(groups)) if data.labels is None else data.labels[0]
    order = np.lexsort((known.numpy(), groups.numpy()))
    axes.imshow(data.train[0].numpy()[np.ix_(order, order)], cmap="gray_r", interpolation="nearest")
    nodes = len(order)
    ends = np.flatnonzero(np.diff(groups.numpy()[order])) + 0.5
    for end in ends:
        axes.axhline(end, color=colours[1], linewidth=0.8)
        axes.axvline(end, color=colours[1], linewidth=0.8)
    middles = (np.concatenate([[-0.5], ends]) + np.concatenate([ends, [nodes - 0.5]])) / 2
    axes.set_xticks(middles, [f"group {k + 1}" for k in range(len(middles))], fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    width = 0.03 * nodes
    axes.set_xlim(-0.5 - 2 * width, nodes - 0.5)
    if data.labels is not None:
        shades = [colours[(k + 2) % len(colours)] for k in range(len(data.classes))]
        kinds = [shades[k] for k in known[order].tolist()]
        axes.barh(np.arange(nodes), width, 1.0, left=-0.5 - 1.6 * width, color=kinds)
        legend = [Patch(color=shade, label=name) for shade, name in zip(shades, data.classes, strict=True)]
        axes.legend(
            handles=legend, title="known", fontsize=8, title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)
        )
    axes.set_title("edges (from row to column) between nodes, in the order of their groups", fontsize=9)


def draw_motif(axes: Axes, program: MotifPlaces, data: PlantedMotifs) -> None:
    """The learned profile on top, below it the frequencies of the aligned sites, a column for each base."""
    tables = (program.profile.softmax(-1).cpu().numpy().T, data.profile.numpy().T)
    gap = np.full((1, data.width), np.nan)
    axes.imshow(np.concatenate([tables[0], gap, tables[1]]), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for top, table in zip((0, len(BASES) + 1), tables, strict=True):
        for (row, column), chance in np.ndenumerate(table):
            if chance >= SHOWN_CHANCE:
                ink = "white" if chance > 0.6 else "black"
                axes.text(column, top + row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=6.5, color=ink)
    names = [f"{base}, {of}" for of in ("learned", "true sites") for base in BASES]
    axes.set_yticks([i + (i >= len(BASES)) for i in range(len(names))], names, fontsize=8)
    axes.set_xticks(range(data.width), [str(j + 1) for j in range(data.width)], fontsize=7)
    axes.set_xlabel("base of the motif", fontsize=9)
    axes.set_title("the motif's profile, in percent from 50 on", fontsize=9)


def draw_topics(axes: Axes, program: TopicModel, data: Documents) -> None:
    """How much of each test document is of each topic by the guide; documents by their main topic, with its words."""
    shares = program.concentrations(data.test.to(program.words.device)).cpu()
    shares = shares / shares.sum(-1, keepdim=True)
    order = shares.mean(0).argsort(descending=True)[:MOST_TOPICS]
    shares = shares[:, order]
    documents = np.lexsort((-shares.max(1).values.numpy(), shares.argmax(1).numpy()))
    image = axes.imshow(shares.T[:, documents].numpy(), cmap="Blues", vmin=0, aspect="auto")
    axes.set_yticks(
        range(len(order)), [", ".join(words) for words in top_words(program, data)[: len(order)]], fontsize=7
    )
    axes.set_xlabel(f"the {len(documents)} test documents, by their main topic", fontsize=9)
    axes.figure.colorbar(image, ax=axes, shrink=0.6, label="share of the document")
    axes.set_title("topics, each with its most probable words, and documents", fontsize=9)


def top_words(program: TopicModel, data: Documents, number: int = TOP_WORDS) -> list[list[str]]:
    """The most probable words of each topic, the topic with the largest share of the test documents first."""
    shares = program.concentrations(data.test.to(program.words.device))
    order = (shares / shares.sum(-1, keepdim=True)).mean(0).argsort(descending=True)
    best = program.words[order].topk(min(number, len(data.vocabulary))).indices.tolist()
    return [[data.vocabulary[word] for word in words] for words in best]

"""Graphs: which nodes are joined; simulated groups, the karate club, and the connectome of a fly's mushroom body."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.connectomes import mushroom_body
from models.data.dataset import Dataset, refuse_folder
from models.errors import DataError

__all__ = ["Graphs", "load_karate_club", "load_mushroom_body_left", "load_mushroom_body_right", "load_simulated_blocks"]

SIMULATION_SEED = 0
NODES, GROUPS = 45, 3
INSIDE, ACROSS = 0.5, 0.1
"""Chances of an edge between simulated nodes of one group, and of two."""
CELLS = {"I": "input", "K": "Kenyon", "O": "output", "P": "projection"}
"""Of a mushroom body."""


@dataclass(frozen=True)
class Graphs(Dataset):
    """Graphs `[n, nodes, nodes]`, float32: 1 for an edge from row to column, else 0; what is trained on is judged.

    `labels` `[n, nodes]`: the groups that are known, `classes` their names. `directed`: whether an edge has a
    direction. Raises `DataError` for other values, edges of a node with itself, or a table that is not symmetric where
    edges have no direction.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    directed: bool = False
    element = "graph"
    elements = "graphs"

    def __post_init__(self) -> None:
        self.check_splits([self.train.shape[-1]] * 2)
        for split in (self.train, self.test):
            odd = split[(split != 0) & (split != 1)]
            if len(odd):
                raise DataError(f"The graphs of {self.name!r} hold {float(odd[0]):g}; expected 0 and 1.")
            if split.diagonal(dim1=-2, dim2=-1).any():
                raise DataError(f"A graph of {self.name!r} has an edge from a node to itself; leave it out.")
            if not self.directed and not torch.equal(split, split.mT):
                raise DataError(f"A graph of {self.name!r} is not symmetric, but its edges have no direction.")


def load_simulated_blocks(data_dir: Path | None = None) -> Graphs:
    """A simulated graph of 45 nodes in 3 groups, whose members are joined five times as often as others."""
    refuse_folder("simulated-blocks", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    labels = torch.arange(NODES) % GROUPS
    chance = torch.where(labels.unsqueeze(-1) == labels, INSIDE, ACROSS)
    upper = torch.bernoulli(chance, generator=generator).triu(1)
    origin = f"a simulated graph of {NODES} nodes in {GROUPS} groups (seed {SIMULATION_SEED})"
    return _graph("simulated-blocks", upper + upper.mT, origin, labels, tuple(str(k) for k in range(GROUPS)))


def load_karate_club(data_dir: Path | None = None) -> Graphs:
    """Zachary's karate club, 34 members and 78 friendships, which then split in two."""
    refuse_folder("karate-club", data_dir, "come with networkx")
    import networkx

    graph: Any = networkx.karate_club_graph()
    edges = torch.as_tensor(networkx.to_numpy_array(graph) > 0).float()
    sides = [graph.nodes[i]["club"] for i in graph]
    classes = tuple(sorted(set(sides)))
    labels = torch.tensor([classes.index(side) for side in sides])
    return _graph("karate-club", edges, "Zachary's karate club (networkx), 34 nodes and 78 edges", labels, classes)


def load_mushroom_body_left(data_dir: Path | None = None) -> Graphs:
    """The left mushroom body of a fly's larva, 209 neurons of 4 types of cells: from which to which synapses lead."""
    return _mushroom_body("left", data_dir)


def load_mushroom_body_right(data_dir: Path | None = None) -> Graphs:
    """The same on the right, 213 neurons."""
    return _mushroom_body("right", data_dir)


def _mushroom_body(side: str, data_dir: Path | None) -> Graphs:
    connectome = mushroom_body(side, data_dir)
    edges = (connectome.synapses > 0).float().fill_diagonal_(0)
    kinds = sorted(set(connectome.types))
    labels = torch.tensor([kinds.index(kind) for kind in connectome.types])
    classes = tuple(CELLS.get(kind, kind) for kind in kinds)
    origin = f"the {side} mushroom body's connectome, {len(labels)} neurons and {int(edges.sum())} directed edges"
    return _graph(f"mushroom-body-{side}", edges, origin, labels, classes, directed=True)


def _graph(
    name: str, edges: Tensor, origin: str, labels: Tensor, classes: tuple[str, ...], directed: bool = False
) -> Graphs:
    """A data set of one graph `[nodes, nodes]`."""
    return Graphs(name, edges[None], edges[None], origin, labels[None], classes, directed)

"""Connectomes: which neuron of an animal speaks to which; of a fly's larva, and of two animals to be matched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder, folders_of_package, refuse_folder
from models.errors import DataError

__all__ = [
    "Connectome",
    "Connectomes",
    "load_simulated_connectomes",
    "load_worms",
    "load_worms_unknown",
    "mushroom_body",
]

SEED = 0
"""Of the simulation, of which neurons are known, and of the order in which the others come."""
SIMULATED = (4, 12)
WORMS, WORMS_UNKNOWN = (5, 35), (0, 40)
"""Neurons whose match is known, and others."""
WORM_FILES = ("WitvlietDataReader7.json", "WitvlietDataReader8.json")
WORM_EDGES = ("Generic_CS", "Generic_GJ")
"""Chemical synapses and gap junctions, as cect calls them."""


@dataclass(frozen=True)
class Connectomes(Dataset):
    """One pair of animals `[1, 2, kinds, n, n]`: how many contacts of each kind go from a neuron to another.

    The first `known` neurons are the same in both animals; the others come in an order of each animal's own. `truth`
    `[n - known]`: which of the first animal's others each of the second's is; it judges and no program sees it.
    `names`: of the first animal's neurons. `train` and `test` are the same, as nothing else is held out. Raises
    `DataError` for more than one pair, adjacencies that are not square, numbers below zero, and a truth that is no
    matching.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    truth: Tensor | None = None
    known: int = 0
    names: tuple[str, ...] = ()
    element = "pair of animals"
    elements = "pairs of animals"

    def __post_init__(self) -> None:
        n = self.train.shape[-1]
        self.check_splits([2, None, n, n])
        if len(self.train) != 1 or self.train.shape != self.test.shape:
            raise DataError(f"{self.name!r} has {len(self.train)} pairs of animals to train on; expected one, tested.")
        if bool((self.train < 0).any()):
            raise DataError(f"{self.name!r} has numbers of contacts below zero; expected counts or weights.")
        if not 0 <= self.known < n:
            raise DataError(f"{self.name!r} knows the match of {self.known} of {n} neurons; expected 0 to {n - 1}.")
        unknown = torch.arange(n - self.known)
        if self.truth is not None and not torch.equal(self.truth.sort().values, unknown):
            raise DataError(f"The truth of {self.name!r} is no matching of {len(unknown)} neurons.")

    def twin(self, neurons: Tensor) -> Tensor:
        """The neuron of the first animal's others that is the mirror image of each, or it itself if there is none.

        A worm's neurons are named alike on the left and the right but for the last letter.
        """
        others = self.names[self.known :]
        swapped = [name[:-1] + {"L": "R", "R": "L"}.get(name[-1:], name[-1:]) for name in others]
        found = [others.index(twin) if twin in others else i for i, twin in enumerate(swapped)]
        return torch.tensor(found)[neurons]


def load_simulated_connectomes(data_dir: Path | None = None) -> Connectomes:
    """Simulated pair of animals: 20 neurons, 8 known; each animal's contacts are counts about the same strengths."""
    refuse_folder("simulated-connectomes", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(SEED)
    n = sum(SIMULATED)
    out, into = torch.randn(2, n, 1, generator=generator).mul(0.7).exp()
    edges = torch.rand(n, n, generator=generator) < 0.3 * out * into.mT
    strength = torch.where(edges, 1 + 4 * torch.rand(n, n, generator=generator), 0.05).fill_diagonal_(0.0)
    pair = torch.poisson(strength.expand(2, n, n), generator=generator)
    origin = f"two simulated animals of {n} neurons (seed {SEED}), {SIMULATED[0]} known and {SIMULATED[1]} to match"
    return _shuffled("simulated-connectomes", pair.unsqueeze(1), SIMULATED[0], origin, (), generator)


def load_worms(data_dir: Path | None = None) -> Connectomes:
    """Two adult C. elegans (Witvliet et al., 2021): their 40 cells of most contacts, 5 known, 35 to match.

    From the package cect, which need only be unpacked, or from `data_dir`, which holds its two files of cect/cache.
    """
    return _worms("worms", WORMS, data_dir)


def load_worms_unknown(data_dir: Path | None = None) -> Connectomes:
    """The same cells of the same animals, none of them known."""
    return _worms("worms-unknown", WORMS_UNKNOWN, data_dir)


def _worms(name: str, sizes: tuple[int, int], data_dir: Path | None) -> Connectomes:
    folder = find_folder(
        folders_of_package("cect", "cache"),
        data_dir,
        " and ".join(WORM_FILES),
        "The worms' connectomes are not installed. Run `pip install --no-deps cect==0.3.5`",
    )
    read = [_read(folder / file) for file in WORM_FILES]
    shared = sorted(set(read[0][0]) & set(read[1][0]))
    pair = torch.stack([edges[:, i][:, :, i] for names, edges in read for i in [[names.index(n) for n in shared]]])
    known, unknown = sizes
    if len(shared) < known + unknown:
        raise DataError(f"The files in {folder} share {len(shared)} neurons; expected at least {known + unknown}.")
    contacts = pair.sum((0, 1, 2)) + pair.sum((0, 1, 3))
    most = contacts.argsort(descending=True, stable=True)[: known + unknown]
    generator = torch.Generator().manual_seed(SEED)
    chosen = most[torch.randperm(len(most), generator=generator)]
    origin = (
        f"two adult C. elegans (Witvliet et al., 2021), the {len(most)} of their {len(shared)} shared cells with most "
        f"contacts; {known} known and {unknown} to match"
    )
    names = tuple(shared[i] for i in chosen.tolist())
    return _shuffled(name, pair[:, :, chosen][..., chosen], known, origin, names, generator)


def _read(file: Path) -> tuple[list[str], Tensor]:
    """Names of an animal's cells, and its contacts `[kinds, n, n]`."""
    if not file.is_file():
        raise DataError(f"{file.parent} holds no {file.name}.")
    try:
        table = json.loads(file.read_text())
        names, kinds = list(table["nodes"]), [table["connections"][kind] for kind in WORM_EDGES]
        edges = torch.from_numpy(np.array(kinds, dtype=np.float32))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is damaged ({error}); get it anew.") from error
    if edges.shape[1:] != (len(names), len(names)):
        raise DataError(f"{file} is damaged: {len(names)} cells, contacts {list(edges.shape)}; get it anew.")
    return names, edges


def _shuffled(
    name: str, pair: Tensor, known: int, origin: str, names: tuple[str, ...], generator: torch.Generator
) -> Connectomes:
    """`pair` `[2, kinds, n, n]` of the same neurons, those of the second animal that are not known put out of order."""
    order = torch.randperm(pair.shape[-1] - known, generator=generator)
    place = torch.cat([torch.arange(known), known + order])
    pair = torch.stack([pair[0], pair[1][:, place][..., place]]).unsqueeze(0)
    return Connectomes(name, pair, pair, origin, truth=order, known=known, names=names)


FLY_FILES = "{side}_adjacency.csv", "{side}_cell_labels.csv"


@dataclass(frozen=True)
class Connectome:
    """One network of neurons.

    - `synapses` `[neurons, neurons]`, float32: how many lead from each (a row) to each other.
    - `types`: the type of each neuron's cell. `side`: "left" or "right".
    """

    synapses: Tensor
    types: tuple[str, ...]
    side: str


def mushroom_body(side: str, data_dir: Path | None = None) -> Connectome:
    """The mushroom body of a fly's larva (Eichler and others, 2017): its "left" side, 209 neurons, or "right", 213.

    Cells are Kenyon (K), input (I), output (O) and projection neurons (P). The files come with the package graspologic,
    of which no code is needed. Raises `DataError` where they are not there or damaged.
    """
    edges, types = (file.format(side=side) for file in FLY_FILES)
    folder = find_folder(
        folders_of_package("graspologic", "datasets", "drosophila"),
        data_dir,
        f"{edges} and {types}",
        "The mushroom body's connectome is not installed. Run `pip install --no-deps graspologic==3.4.4`",
    )
    for name in (edges, types):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no {name}.")
    try:
        table = np.loadtxt(folder / edges, ndmin=2)
    except ValueError as error:
        raise DataError(f"{folder / edges} is damaged ({error}); get it anew.") from error
    names = tuple((folder / types).read_text().split())
    if table.shape != (len(names), len(names)) or (table < 0).any():
        raise DataError(
            f"{folder / edges} holds a table of shape {list(table.shape)} and {types} {len(names)} types; expected "
            "counts between as many neurons."
        )
    return Connectome(torch.as_tensor(table, dtype=torch.float32), names, side)

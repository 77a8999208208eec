"""Connectomes: which neuron of an animal speaks to which, read from the files of packages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import find_folder
from models.errors import DataError

__all__ = ["Connectome", "mushroom_body"]

FILES = "{side}_adjacency.csv", "{side}_cell_labels.csv"


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
    package = find_spec("graspologic")
    places = (package.submodule_search_locations or []) if package else []
    edges, types = (file.format(side=side) for file in FILES)
    folder = find_folder(
        [Path(place) / "datasets" / "drosophila" for place in places],
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

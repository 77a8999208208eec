"""All data sets by name, and how batches are drawn from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.answers import load_ability, load_simulated_answers
from models.data.connectomes import load_simulated_connectomes, load_worms, load_worms_unknown
from models.data.dataset import Dataset
from models.data.documents import load_reuters, load_simulated_documents
from models.data.graphs import (
    load_karate_club,
    load_mushroom_body_left,
    load_mushroom_body_right,
    load_simulated_blocks,
)
from models.data.images import BINARISATIONS, Images, binarise_once, draw_pixels, load_digits, load_fashion_mnist
from models.data.points import load_blobs, load_iris, load_wine
from models.data.rankings import load_bake_off, load_simulated_rankings
from models.data.sequences import (
    load_brown_characters,
    load_brown_words,
    load_crp_sites,
    load_simulated_chains,
    load_simulated_motifs,
)
from models.data.tables import (
    load_breast_cancer,
    load_diabetes,
    load_erdos_renyi_10,
    load_erdos_renyi_20,
    load_sachs,
    load_sachs_all,
    load_scale_free_10,
    load_scale_free_20,
    load_simulated_regression,
)
from models.errors import ConfigError, DataError
from pyro_discrete.errors import near_matches

__all__ = ["DATASETS", "BatchStream", "load_data", "load_images"]


def load_data(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set of that name; raises `DataError` if there is none, or if its files are absent or damaged."""
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}. {near_matches(name, DATASETS)}")
    return DATASETS[name](data_dir)


def load_images(name: str, data_dir: Path | None = None) -> Images:
    """The same for images; raises `DataError` for data that are none."""
    data = load_data(name, data_dir)
    if not isinstance(data, Images):
        raise DataError(f"The data set {name!r} holds {data.elements}, images are expected.")
    return data


DATASETS: Mapping[str, Callable[[Path | None], Dataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "iris": load_iris,
    "wine": load_wine,
    "blobs": load_blobs,
    "simulated-answers": load_simulated_answers,
    "ability": load_ability,
    "simulated-chains": load_simulated_chains,
    "brown-words": load_brown_words,
    "brown-characters": load_brown_characters,
    "simulated-rankings": load_simulated_rankings,
    "bake-off": load_bake_off,
    "simulated-regression": load_simulated_regression,
    "diabetes": load_diabetes,
    "breast-cancer": load_breast_cancer,
    "simulated-connectomes": load_simulated_connectomes,
    "worms": load_worms,
    "worms-unknown": load_worms_unknown,
    "erdos-renyi-10": load_erdos_renyi_10,
    "erdos-renyi-20": load_erdos_renyi_20,
    "scale-free-10": load_scale_free_10,
    "scale-free-20": load_scale_free_20,
    "sachs": load_sachs,
    "sachs-all": load_sachs_all,
    "simulated-motifs": load_simulated_motifs,
    "crp-sites": load_crp_sites,
    "simulated-documents": load_simulated_documents,
    "reuters": load_reuters,
    "simulated-blocks": load_simulated_blocks,
    "karate-club": load_karate_club,
    "mushroom-body-left": load_mushroom_body_left,
    "mushroom-body-right": load_mushroom_body_right,
}


class BatchStream:
    """Endless minibatches (binary ones of images), epoch after epoch in a new order; an epoch's last may be smaller.

    Order and dynamic binarisation come from one generator of its own, and `state_dict` holds all of its state: a
    stream that loads it goes on bit for bit.

    Raises `ConfigError` for an unknown binarisation or a batch size outside 1 .. number of images.
    """

    def __init__(self, intensities: Tensor, batch_size: int, binarisation: str, seed: int) -> None:
        if binarisation not in BINARISATIONS:
            raise ConfigError(f"Unknown binarisation {binarisation!r}. {near_matches(binarisation, BINARISATIONS)}")
        if len(intensities) == 0:
            raise DataError("There are no images or other elements to draw batches from.")
        if not 1 <= batch_size <= len(intensities):
            raise ConfigError(
                f"The batch size is {batch_size}; expected 1 to {len(intensities)}, the training elements."
            )
        self.dynamic = binarisation == "dynamic"
        self.images = intensities if self.dynamic else binarise_once(intensities, binarisation)
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.position = 0

    def next_batch(self) -> Tensor:
        """`[batch, ...]`; zeros and ones of images."""
        if self.position >= len(self.order):
            self.order = torch.randperm(len(self.images), generator=self.generator)
            self.position = 0
        chosen = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        batch = self.images[chosen]
        return draw_pixels(batch, self.generator) if self.dynamic else batch

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order.clone(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order = state["order"].clone()
        self.position = state["position"]

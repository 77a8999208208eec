"""Points: measurements in a few dimensions, and classes that a mixture should find without having seen them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.dataset import Dataset, refuse_folder

__all__ = ["Points", "load_blobs", "load_iris", "load_wine"]

BLOBS_SEED = 0
BLOBS = (1200, 400)
"""Numbers of simulated points to train on and to test."""


@dataclass(frozen=True)
class Points(Dataset):
    """Points `[n, features]`, float32. Raises `DataError` for no points, NaN, or labels of another number."""

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    element = "point"
    elements = "points"

    def __post_init__(self) -> None:
        self.check_splits(self.train.shape[1:2])


def load_iris(data_dir: Path | None = None) -> Points:
    """Scikit-learn's 150 irises of 3 species, 4 measurements: all of them both to train and to judge."""
    return _of_scikit_learn("iris", data_dir)


def load_wine(data_dir: Path | None = None) -> Points:
    """Scikit-learn's 178 wines of 3 cultivars, 13 measurements: all of them both to train and to judge."""
    return _of_scikit_learn("wine", data_dir)


def load_blobs(data_dir: Path | None = None) -> Points:
    """Simulated points in the plane from 5 Gaussians of different shapes and sizes: 1200 to train, 400 to test."""
    refuse_folder("blobs", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(BLOBS_SEED)
    number, components = sum(BLOBS), 5
    angles = torch.arange(components) * (2 * torch.pi / components)
    means = 4.0 * torch.stack([angles.cos(), angles.sin()], -1)
    factors = torch.eye(2) + 0.6 * torch.randn(components, 2, 2, generator=generator)
    weights = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
    labels = torch.multinomial(weights, number, replacement=True, generator=generator)
    noise = torch.randn(number, 2, 1, generator=generator)
    points = means[labels] + (factors[labels] @ noise).squeeze(-1)
    cut = BLOBS[0]
    origin = f"{number} simulated points of 5 Gaussians (seed {BLOBS_SEED}), {BLOBS[0]} to train and {BLOBS[1]} to test"
    return Points("blobs", points[:cut], points[cut:], origin, labels[cut:])


def _of_scikit_learn(name: str, data_dir: Path | None) -> Points:
    """One of its data sets, each feature with mean 0 and standard deviation 1."""
    refuse_folder(name, data_dir, "come with scikit-learn")
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    points = torch.as_tensor(bunch.data, dtype=torch.float32)
    points = (points - points.mean(0)) / points.std(0)
    origin = f"scikit-learn's {name}, {len(points)} standardised points, trained on and judged by all"
    return Points(name, points, points, origin, torch.as_tensor(bunch.target))

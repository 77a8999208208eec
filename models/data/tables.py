"""Tables of features and what is to be told from them: a number, or one of two classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.dataset import Dataset, refuse_folder
from models.errors import DataError

__all__ = ["Tables", "load_breast_cancer", "load_diabetes", "load_simulated_regression"]

SIMULATION_SEED = 0
SIMULATED = (200, 200)
WEIGHTS = (1.0, 0.0, 0.0, -0.8, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0)
"""Of the simulated features, of which three matter."""
SHARED, NOISE = 0.6, 0.7
"""The correlation of any two simulated features, and the target's noise."""
SPLIT_SEED = 0
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Tables(Dataset):
    """One table to train on, `[1, n, 1 + features]`, one to test, `[1, m, 1 + features]`: the target comes first.

    A whole table is one element: what explains it belongs to all of its rows. `classes`: whether targets are 0 and 1.
    `truth`: the features that matter, where that is known. Raises `DataError` for tables of another width, NaN, or
    classes that are neither 0 nor 1.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    classes: bool = False
    features: tuple[str, ...] = ()
    truth: tuple[int, ...] = ()
    element = "table"
    elements = "tables"

    def __post_init__(self) -> None:
        self.check_splits([None, 1 + len(self.features)])
        for split in (self.train, self.test):
            target = split[..., 0]
            odd = target[(target != 0) & (target != 1)]
            if self.classes and len(odd):
                raise DataError(f"The classes of {self.name!r} hold {float(odd[0]):g}; expected 0 and 1.")


def load_simulated_regression(data_dir: Path | None = None) -> Tables:
    """Simulated regression on 10 correlated features of which 3 matter: 200 rows to train, 200 to test."""
    refuse_folder("simulated-regression", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    rows, cut, n = sum(SIMULATED), SIMULATED[0], len(WEIGHTS)
    common = torch.randn(rows, 1, generator=generator)
    x = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * torch.randn(rows, n, generator=generator)
    y = x @ torch.tensor(WEIGHTS) + NOISE * torch.randn(rows, generator=generator)
    table = torch.cat([y.unsqueeze(-1), x], -1)
    origin = f"simulated regression (seed {SIMULATION_SEED}), {cut} rows to train and {rows - cut} to test"
    return Tables(
        "simulated-regression",
        table[None, :cut],
        table[None, cut:],
        origin,
        features=tuple(f"x{j}" for j in range(n)),
        truth=tuple(j for j, weight in enumerate(WEIGHTS) if weight),
    )


def load_diabetes(data_dir: Path | None = None) -> Tables:
    """Scikit-learn's 442 diabetics, 10 features, the disease's progress in a year: a quarter of the rows to test."""
    return _of_scikit_learn("diabetes", data_dir, classes=False)


def load_breast_cancer(data_dir: Path | None = None) -> Tables:
    """Scikit-learn's 569 breast tumours, 30 features, benign (1) or not (0): a quarter of the rows to test."""
    return _of_scikit_learn("breast-cancer", data_dir, classes=True)


def _of_scikit_learn(name: str, data_dir: Path | None, classes: bool) -> Tables:
    """Features, and a target that is a number, with mean 0 and standard deviation 1 among the rows to train on."""
    refuse_folder(name, data_dir, "come with scikit-learn")
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name.replace('-', '_')}")()
    table = torch.cat([torch.as_tensor(bunch.target).unsqueeze(-1), torch.as_tensor(bunch.data)], -1).float()
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(SPLIT_SEED))]
    cut = len(table) - round(TEST_SHARE * len(table))
    mean, deviation = table[:cut].mean(0), table[:cut].std(0)
    if classes:
        mean[0], deviation[0] = 0.0, 1.0
    table = (table - mean) / deviation
    origin = (
        f"scikit-learn's {name}, {cut} standardised rows to train and {len(table) - cut} to test, split with seed "
        f"{SPLIT_SEED}"
    )
    features = tuple(str(feature) for feature in bunch.feature_names)
    return Tables(name, table[None, :cut], table[None, cut:], origin, classes=classes, features=features)

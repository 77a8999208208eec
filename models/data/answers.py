"""Answers: right or wrong, item by item, some left out; simulated from latent classes, or those of an ability test."""

from __future__ import annotations

import gzip
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder
from models.errors import DataError

__all__ = ["Answers", "load_ability", "load_simulated_answers"]

MISSING = -1.0
SIMULATED = (1000, 500)
SIMULATION_SEED = 0
SPLIT_SEED = 0
ABILITY_TEST = 305
R_FILES = ("Rdata.rdb", "Rdata.rdx")
R_FOLDERS = tuple(
    Path(prefix) / "lib" / "R" / library / "psychTools" / "data"
    for prefix in ("/usr", "/usr/local", sys.prefix)
    for library in ("site-library", "library")
)
"""Where Debian's package r-cran-psychtools, or R itself, puts the files of the R package psychTools."""


@dataclass(frozen=True)
class Answers(Dataset):
    """Answers `[n, items]`, float32: 1 right, 0 wrong, -1 none. Raises `DataError` for any other value."""

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    items: tuple[str, ...] = ()
    element = "person"
    elements = "persons"

    def __post_init__(self) -> None:
        self.check_splits([len(self.items)] if self.items else self.train.shape[1:2])
        for split in (self.train, self.test):
            odd = split[(split != 0) & (split != 1) & (split != MISSING)]
            if len(odd):
                raise DataError(f"The answers of {self.name!r} hold {float(odd[0])}; expected 0, 1, or -1 for none.")


def load_simulated_answers(data_dir: Path | None = None) -> Answers:
    """Simulated answers of 4 latent classes to 12 items, a tenth left out: 1000 persons to train, 500 to test."""
    if data_dir is not None:
        raise DataError("The simulated answers are read from no folder: leave out --data-dir.")
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    number, items, cut = sum(SIMULATED), 12, SIMULATED[0]
    # A class masters three parts of the four into which the items fall, and guesses at the one that bears its number.
    chance = torch.full((4, items), 0.85)
    for group in range(4):
        chance[group, 3 * group : 3 * group + 3] = 0.15
    labels = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), number, replacement=True, generator=generator)
    answers = torch.bernoulli(chance[labels], generator=generator)
    answers[torch.rand(number, items, generator=generator) < 0.1] = MISSING
    return Answers(
        "simulated-answers",
        answers[:cut],
        answers[cut:],
        f"simulated answers of 4 classes to {items} items, a tenth left out (seed {SIMULATION_SEED}), "
        f"{cut} persons to train and {number - cut} to test",
        labels[cut:],
    )


def load_ability(data_dir: Path | None = None) -> Answers:
    """Ability items (psychTools, the ICAR project): 1525 persons, 16 items of four sorts, 1220 to train, 305 to test.

    Raises `DataError` if the R package's files are not there or cannot be read.
    """
    folder = find_folder(
        R_FOLDERS,
        data_dir,
        f"{R_FILES[0]} and {R_FILES[1]} of the R package psychTools",
        "The ability items are not installed. Run `apt-get install r-cran-psychtools`",
    )
    table = _read_r_object(folder, "ability")
    answers = torch.as_tensor(np.nan_to_num(np.asarray(table, dtype=np.float32), nan=MISSING))
    # Matrices without names for their columns come as plain arrays.
    named = table.coords["dim_1"].values if hasattr(table, "coords") else range(1, answers.shape[1] + 1)
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(SPLIT_SEED))
    answers, cut = answers[order], len(answers) - ABILITY_TEST
    if cut < 1:
        raise DataError(f"The ability items in {folder} have {len(answers)} persons; expected more than {-cut}.")
    return Answers(
        "ability",
        answers[:cut],
        answers[cut:],
        f"psychTools' ability items, {cut} persons to train and {ABILITY_TEST} to test, split with seed {SPLIT_SEED}",
        items=tuple(str(name) for name in named),
    )


def _read_r_object(folder: Path, name: str) -> Any:
    """An object of an R package's lazily loaded data: a table of offsets, and compressed pieces of one large file."""
    import rdata

    paths = [folder / file for file in R_FILES]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{folder} holds no {path.name}; expected {' and '.join(R_FILES)} of psychTools.")
    pieces, index = paths
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unknown file type")
            table: Any = rdata.conversion.convert(rdata.parser.parse_data(gzip.decompress(index.read_bytes())))
            offset, length = (int(number) for number in table["variables"][name])
            with pieces.open("rb") as file:
                file.seek(offset)
                piece = file.read(length)
            # Four bytes of the size that the piece has when decompressed, then what zlib reads.
            content = zlib.decompress(piece[4:])
            if len(content) != struct.unpack(">I", piece[:4])[0]:
                raise zlib.error("another size than stated")
            return rdata.conversion.convert(rdata.parser.parse_data(content))
    except KeyError as error:
        raise DataError(f"{index} lists no {name!r}; expected the R package psychTools.") from error
    except (OSError, zlib.error, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{pieces} and {index.name} are damaged ({error}); get them anew.") from error

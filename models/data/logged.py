"""Logs of bandits: rounds of which the action, its propensity and its reward were written down."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import find_folder, folders_of_package
from models.errors import DataError
from pyro_discrete.errors import near_matches

__all__ = ["LOGS", "LoggedRounds", "load_log", "load_open_bandit", "simulate_log"]

SIMULATION_SEED = 0
ARMS, CONTEXTS, ROUNDS = 200, 4, 60_000
OPEN_BANDIT_FILE = Path("random") / "all" / "all.csv"


@dataclass(frozen=True)
class LoggedRounds:
    """Rounds `[n]` of a logging policy, and what they say of another policy.

    - `contexts`, `actions`: indices below `size[0]` and `size[1]`. `rewards`, `propensities`: of the action taken.
    - `truth` `[contexts, arms]`: the mean rewards, where the rounds were simulated.

    Raises `DataError` for indices out of range, or propensities outside (0, 1].
    """

    name: str
    contexts: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    propensities: NDArray[np.float64]
    size: tuple[int, int]
    origin: str
    truth: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for what, values, size in (("context", self.contexts, self.size[0]), ("action", self.actions, self.size[1])):
            if len(values) == 0 or values.min() < 0 or values.max() >= size:
                raise DataError(f"The log {self.name!r} is empty or has a {what} outside 0 to {size - 1}.")
        if not ((self.propensities > 0) & (self.propensities <= 1)).all():
            raise DataError(f"The log {self.name!r} has propensities outside (0, 1].")

    @property
    def weights(self) -> NDArray[np.float64]:
        """How often each context came, `[contexts]`: a share of all rounds."""
        return np.bincount(self.contexts, minlength=self.size[0]) / len(self.contexts)

    def values(self) -> NDArray[np.float64]:
        r"""Each action's mean reward by inverse propensities, `[contexts, arms]`; its mean over logs is the truth.

        .. math:: \\hat V(c, a) = \\frac{1}{N_c} \\sum_{n: c_n = c} \\frac{r_n \\, 1[a_n = a]}{p_n}

        Source: Horvitz and Thompson (1952); for policies, Li, Chu, Langford and Wang (2011), Unbiased offline
        evaluation of contextual-bandit-based news article recommendation algorithms.
        """
        cells = self.contexts * self.size[1] + self.actions
        sums = np.bincount(cells, self.rewards / self.propensities, minlength=self.size[0] * self.size[1])
        counts = np.bincount(self.contexts, minlength=self.size[0])
        return sums.reshape(self.size) / np.maximum(counts, 1)[:, None]


def load_log(name: str, data_dir: Path | None = None) -> LoggedRounds:
    """The log of that name; raises `DataError` if there is none, or if its files are absent or damaged."""
    if name not in LOGS:
        raise DataError(f"Unknown log {name!r}. {near_matches(name, LOGS)}")
    return LOGS[name](data_dir)


def load_open_bandit(data_dir: Path | None = None) -> LoggedRounds:
    """10,000 rounds of the Open Bandit Dataset under the random policy: 80 items in 3 positions, clicks.

    Read from the package obp, or from `data_dir`, which holds random/all/all.csv or that file itself.

    Source: Saito, Aihara, Matsutani and Narita (2021), Open Bandit Dataset and Pipeline.
    """
    folder = find_folder(
        folders_of_package("obp", "dataset", "obd"),
        data_dir,
        str(OPEN_BANDIT_FILE),
        "The logged bandit is not there: `pip download --no-deps obp==0.4.1` and unzip it (obp/dataset/obd)",
    )
    file = next((f for f in (folder / OPEN_BANDIT_FILE, folder / OPEN_BANDIT_FILE.name) if f.is_file()), None)
    if file is None:
        raise DataError(f"{folder} holds neither {OPEN_BANDIT_FILE} nor {OPEN_BANDIT_FILE.name}.")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    try:
        columns = [
            np.array([float(row[name]) for row in rows])
            for name in ("position", "item_id", "click", "propensity_score")
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is not a log of the Open Bandit Dataset: {error!r} in one of its rows.") from error
    position, item, click, propensity = columns
    origin = (
        f"Open Bandit Dataset, random policy: {len(rows)} rounds, 80 items in 3 positions, {int(click.sum())} clicks"
    )
    return LoggedRounds(
        "open-bandit", position.astype(np.int64) - 1, item.astype(np.int64), click, propensity, (3, 80), origin
    )


def simulate_log(data_dir: Path | None = None) -> LoggedRounds:
    """A bandit of many arms whose mean rewards are known: a log of a policy that favours some arms at random."""
    if data_dir is not None:
        raise DataError("The simulated log is read from no folder: leave out --data-dir.")
    generator = np.random.default_rng(SIMULATION_SEED)
    truth = generator.beta(2.0, 6.0, (CONTEXTS, ARMS))
    policy = np.exp(0.7 * generator.standard_normal((CONTEXTS, ARMS)))
    policy /= policy.sum(1, keepdims=True)
    contexts = generator.integers(CONTEXTS, size=ROUNDS)
    thresholds = generator.random(ROUNDS)[:, None]
    actions = np.minimum((policy.cumsum(1)[contexts] < thresholds).sum(1), ARMS - 1)
    rewards = (generator.random(ROUNDS) < truth[contexts, actions]).astype(np.float64)
    origin = f"{ROUNDS} simulated rounds of {ARMS} arms in {CONTEXTS} contexts (seed {SIMULATION_SEED})"
    propensities = policy[contexts, actions]
    return LoggedRounds("simulated", contexts, actions, rewards, propensities, (CONTEXTS, ARMS), origin, truth)


LOGS: Mapping[str, Callable[[Path | None], LoggedRounds]] = {
    "open-bandit": load_open_bandit,
    "simulated": simulate_log,
}

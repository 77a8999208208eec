"""The record of a run: one JSON object a line, appended as training goes and cut back to a checkpoint on resuming."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Required, TypedDict

from pyro_discrete.checkpoints import write_atomically

__all__ = ["Metrics", "Record"]


class Record(TypedDict, total=False):
    """What is known at one step; bounds in nats per image.

    - `elbo`: this step's training objective (of relaxed values where the estimator relaxes).
    - `smoothed`: its running mean.
    - `test_elbo`: the discrete test ELBO, from one hard draw an image, at steps where it was evaluated.
    - `ms_per_step`: median over the steps since the last record.
    """

    step: Required[int]
    elbo: float
    smoothed: float
    test_elbo: float
    ms_per_step: float


class Metrics:
    """Records in memory and, if a path is given, in that file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        self.records.append(record)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def resume(self, step: int) -> None:
        """Read the file's records up to `step`, and cut off what an ended run wrote after its last checkpoint."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                record: Any = json.loads(line)
            except json.JSONDecodeError:
                break  # the half line that a kill left at the end
            if record["step"] > step:
                break
            self.records.append(record)
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of the records that hold `name`."""
        held = [record for record in self.records if name in record]
        return [record["step"] for record in held], [record[name] for record in held]

    @property
    def ms_per_step(self) -> float:
        """Median over the run, without the first record, which holds the warming up."""
        times = self.curve("ms_per_step")[1]
        return statistics.median(times[1:] or times)

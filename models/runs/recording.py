"""What a run writes down as it goes: metrics at intervals, a JSON object a line, with evaluations on the test data."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Required, TypedDict

from torch import Tensor

from models.programs.program import Program
from models.runs.evaluation import discrete_elbo
from pyro_discrete import FitState
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.diagnostics import Monitor

__all__ = ["LOG_EVERY", "Metrics", "Record", "Recorder"]

LOG_EVERY = 10
"""Steps between two records of metrics, in runs of so many."""
SMOOTHING = 0.98**LOG_EVERY
"""Decay of the running mean of the training objective, from one record to the next."""


class Record(TypedDict, total=False):
    """What is known at one step; bounds in nats per image.

    - `elbo`: the training objective of the last steps (of relaxed values where the estimator relaxes), every so many.
    - `smoothed`: its running mean.
    - `test_elbo`: the discrete test ELBO, from one hard draw an image, at steps where it was evaluated.
    - `ms_per_step`: median over the steps since the last record.
    - `signal_to_noise`, `dead_latents`: of the monitor's last look, where there was one since the last record.
    """

    step: Required[int]
    elbo: float
    smoothed: float
    test_elbo: float
    ms_per_step: float
    signal_to_noise: float
    dead_latents: float


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


class Recorder:
    """A callback of `fit` that appends to `metrics`: every `log_every` steps, and where the test ELBO is evaluated.

    Evaluates every `evaluate_every` steps and at step `last`, on `test`. Its state is saved with the run's. Of several
    processes the first alone evaluates and appends. `monitor`: one whose looks are to be noted as well.
    """

    every = 1

    def __init__(
        self,
        metrics: Metrics,
        program: Program,
        test: Tensor,
        evaluate_every: int,
        last: int,
        monitor: Monitor | None = None,
    ) -> None:
        self.metrics, self.program, self.test, self.monitor = metrics, program, test, monitor
        self.evaluate_every, self.last, self.log_every = evaluate_every, last, min(LOG_EVERY, last)
        self.elements, self.known = 0, dict[str, float]()
        self._steps, self._since, self._looked = 0, time.perf_counter(), 0

    def __call__(self, state: FitState) -> None:
        self._steps += 1
        self.elements += state.elements or len(state.args[0])
        loss = state.loss if state.step % self.log_every == 0 else None
        if loss is not None:
            objective = -self.log_every * loss / self.elements
            smoothed = self.known.get("smoothed", objective)
            self.known = {"elbo": objective, "smoothed": SMOOTHING * smoothed + (1 - SMOOTHING) * objective}
            self.elements = 0
        if state.rank > 0:
            return
        evaluate = state.step % self.evaluate_every == 0 or state.step == self.last
        if not evaluate and state.step % self.log_every:
            return
        record: Record = {"step": state.step}
        if loss is not None:
            record |= self.known  # type: ignore[typeddict-item]
        record["ms_per_step"] = 1000 * (time.perf_counter() - self._since) / self._steps
        if evaluate:
            record["test_elbo"] = discrete_elbo(self.program, self.test)
        looks = [] if self.monitor is None else self.monitor.records
        if looks and looks[-1]["step"] > self._looked:  # a step or more ago: it is called after this
            self._looked = looks[-1]["step"]
            record["signal_to_noise"] = looks[-1]["signal_to_noise"]
            record["dead_latents"] = sum(site["dead_latents"] for site in looks[-1]["sites"].values())
        self.metrics.append(record)
        self._steps, self._since = 0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"elements": self.elements, "known": dict(self.known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.elements, self.known = state["elements"], dict(state["known"])
        self._steps, self._since = 0, time.perf_counter()

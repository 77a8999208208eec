"""What a run writes down as it goes: metrics at intervals, with evaluations on the test data."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from models.programs.program import Program
from models.runs.evaluation import discrete_elbo
from models.runs.metrics import Metrics, Record
from pyro_discrete import FitState

__all__ = ["LOG_EVERY", "Recorder"]

LOG_EVERY = 10
"""Steps between two records of metrics, in runs of so many."""
SMOOTHING = 0.98**LOG_EVERY
"""Decay of the running mean of the training objective, from one record to the next."""


class Recorder:
    """A callback of `fit` that appends to `metrics`: every `log_every` steps, and where the test ELBO is evaluated.

    Evaluates every `evaluate_every` steps and at step `last`, on `test`. Its state is saved with the run's.
    """

    every = 1

    def __init__(self, metrics: Metrics, program: Program, test: Tensor, evaluate_every: int, last: int) -> None:
        self.metrics, self.program, self.test = metrics, program, test
        self.evaluate_every, self.last, self.log_every = evaluate_every, last, min(LOG_EVERY, last)
        self.elements, self.known = 0, dict[str, float]()
        self._steps, self._since = 0, time.perf_counter()

    def __call__(self, state: FitState) -> None:
        self._steps += 1
        self.elements += len(state.args[0])
        if state.step % self.log_every == 0 and state.loss is not None:
            objective = -self.log_every * state.loss / self.elements
            smoothed = self.known.get("smoothed", objective)
            self.known = {"elbo": objective, "smoothed": SMOOTHING * smoothed + (1 - SMOOTHING) * objective}
            self.elements = 0
        evaluate = state.step % self.evaluate_every == 0 or state.step == self.last
        if not evaluate and state.step % self.log_every:
            return
        record: Record = {"step": state.step, **self.known}  # type: ignore[typeddict-item]
        record["ms_per_step"] = 1000 * (time.perf_counter() - self._since) / self._steps
        if evaluate:
            record["test_elbo"] = discrete_elbo(self.program, self.test)
        self.metrics.append(record)
        self._steps, self._since = 0, time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"elements": self.elements, "known": dict(self.known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.elements, self.known = state["elements"], dict(state["known"])
        self._steps, self._since = 0, time.perf_counter()

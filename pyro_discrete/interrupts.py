"""Ctrl-C and `kill` as a request that training answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopRequest"]


class Interrupted(KeyboardInterrupt):
    """Training stopped at `step` because of the signal `number`, its state saved if it keeps checkpoints.

    `result`: what there was by then, a `FitResult`. Like what Ctrl-C raises elsewhere it is no `Exception`: a loop over
    settings that catches those is stopped as well.
    """

    def __init__(self, step: int, number: int, result: Any = None) -> None:
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step = step
        self.number = number
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.number, self.result)


class StopRequest:
    """Within, the first SIGINT or SIGTERM sets `number` and does nothing else; a second one acts as usual.

    A step cut off in the middle would leave parameters and optimiser out of step, hence the wait for its end. In a
    thread other than the main one, where Python allows no handlers, signals act as usual.

    - `patient`: whether further ones do nothing either. A launcher of processes hands on to each what the terminal
      has sent it already, and kills by itself what does not end.
    """

    def __init__(self, patient: bool = False) -> None:
        self.number: int | None = None
        self.patient = patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # a handler that is not Python's could not be put back
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if not self.patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

"""What a run records, as event files for TensorBoard to draw while it goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pyro_discrete.diagnostics.monitoring import Monitor
from pyro_discrete.errors import SettingError
from pyro_discrete.training.loop import FitState

__all__ = ["TensorBoard"]


class TensorBoard:
    """A callback of `fit` that writes each of its records into the folder's event files.

    - `loss`, `lr`, `steps_per_second` at each record, `validation_loss` at each validation that there was by then.
    - with a `monitor` that is among the callbacks, before this one: `signal_to_noise`, and `dead_latents/<site>`.

    `tensorboard --logdir FOLDER` shows them. A run that goes on from a checkpoint goes on in the same folder: what was
    written after the checkpoint is taken back. Of several processes the first alone writes.

    Raises `SettingError` if the package tensorboard is not installed (extra `tensorboard`).

    Source: `torch.utils.tensorboard.SummaryWriter`, which does the writing.
    """

    def __init__(self, folder: str | Path, monitor: Monitor | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(
                "TensorBoard's files need the package tensorboard: pip install 'pyro_discrete[tensorboard]'."
            ) from error
        self.folder: Path = Path(folder)
        self.monitor: Monitor | None = monitor
        self._make, self._writer = SummaryWriter, None
        self._validations = self._looks = 0

    def __call__(self, state: FitState) -> None:
        """Write what has been recorded since."""
        if state.rank > 0 or not state.records:
            return
        if self._writer is None:
            self._writer = self._make(str(self.folder), purge_step=state.step)
            self._validations = sum(each["step"] < state.step for each in state.validations)
        record = state.records[-1]
        self._write(int(record["step"]), loss=record["loss"], lr=record["lr"])
        self._write(int(record["step"]), steps_per_second=1000 / max(record["ms_per_step"], 1e-9))
        for each in state.validations[self._validations :]:
            self._write(int(each["step"]), validation_loss=each["validation_loss"])
        self._validations = len(state.validations)
        looks = self.monitor.records if self.monitor is not None else []
        for look in looks[self._looks :]:
            dead = {f"dead_latents/{name}": site["dead_latents"] for name, site in look["sites"].items()}
            self._write(look["step"], signal_to_noise=look["signal_to_noise"], **dead)
        self._looks = len(looks)
        self._writer.flush()

    def _write(self, step: int, **values: Any) -> None:
        assert self._writer is not None
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

"""Event files for TensorBoard: what is written, at which steps, by which process."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pyro
import pytest

from pyro_discrete import FitState, TraceELBO, fit
from pyro_discrete.diagnostics import Monitor, TensorBoard
from pyro_discrete.errors import SettingError
from tests.support.training_pairs import DATA, QUIET, Pair, run


class Writer:
    """Stands in for torch's `SummaryWriter`, whose calls it keeps."""

    made: list[Writer]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars = folder, purge_step, list[tuple[str, float, int]]()
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None: ...


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    Writer.made = []
    stand_in: Any = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    return Writer.made


def test_it_writes_records_validations_and_what_a_monitor_sees(writers: list[Writer], tmp_path: Path) -> None:
    pyro.clear_param_store()
    pair, elbo = Pair(), TraceELBO("rloo", num_particles=2)
    monitor = Monitor(pair.model, pair.guide, elbo, every=10)
    board = TensorBoard(tmp_path, monitor)
    settings: dict[str, Any] = {"steps": 30, "validation_data": DATA[:10], "validate_every": 15}
    settings |= {**QUIET, "lr": 0.01, "batch_size": 8, "seed": 1, "callbacks": [monitor, board]}
    result = fit(pair.model, pair.guide, DATA, elbo, **settings)
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path), 10)
    written = {name: {step: v for n, v, step in writer.scalars if n == name} for name, _, _ in writer.scalars}
    assert written["loss"] == dict(zip([10, 20, 30], result.history["loss"].values.tolist(), strict=True))
    assert written["validation_loss"].keys() == {15, 30}
    assert written["signal_to_noise"].keys() == {10, 20, 30}
    assert written["dead_latents/z"].keys() == {10, 20, 30}
    assert min(written["steps_per_second"].values()) > 0


def test_other_ranks_write_nothing(writers: list[Writer], tmp_path: Path) -> None:
    pair = Pair()
    board = TensorBoard(tmp_path)
    board(FitState(pair.model, pair.guide, TraceELBO(), step=1, rank=1, ranks=2, records=[{"step": 1}]))
    assert not writers


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingError, match=r"pip install 'pyro_discrete\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_the_real_writer_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run("nvil", steps=20, callbacks=[TensorBoard(tmp_path)])
    assert list(tmp_path.glob("events*"))

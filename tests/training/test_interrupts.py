"""SIGINT and SIGTERM while training runs, inside whatever a caller has around it."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyro_discrete import FitState
from pyro_discrete.checkpoints import load_checkpoint
from pyro_discrete.interrupts import Interrupted, StopRequest
from tests.support.training_pairs import run


class Strike:
    """Sends this process a signal at a step."""

    every = 1

    def __init__(self, number: int, at: int) -> None:
        self.number, self.at = number, at

    def __call__(self, state: FitState) -> None:
        if state.step == self.at:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own, whatever the shell that started the tests ignores."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def swallowing(number: int, **settings: Any) -> None:
    try:
        run(steps=8, callbacks=[Strike(number, 3)], **settings)
    except Exception:
        return


def suppressing(number: int, **settings: Any) -> None:
    with contextlib.suppress(Exception):
        run(steps=8, callbacks=[Strike(number, 3)], **settings)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("caller", [swallowing, suppressing])
def test_it_passes_by_what_catches_exceptions(caller: Any, number: int, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 3") as caught:
        caller(number, checkpoint=tmp_path / "run.pt")
    assert not isinstance(caught.value, Exception)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert load_checkpoint(tmp_path / "run.pt")["step"] == 3
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    assert run(steps=8, callbacks=[print], checkpoint=tmp_path / "run.pt", resume=True).step == 8


def test_one_in_the_last_step_is_not_lost(tmp_path: Path) -> None:
    """A loop over settings would go on with the next one."""
    with pytest.raises(Interrupted, match="step 8") as caught:
        run(steps=8, callbacks=[Strike(signal.SIGTERM, 8)], checkpoint=tmp_path / "run.pt")
    assert caught.value.result.step == load_checkpoint(tmp_path / "run.pt")["step"] == 8


def test_a_callers_own_handler_is_put_back() -> None:
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with pytest.raises(Interrupted):
        run(steps=8, callbacks=[Strike(signal.SIGTERM, 3)])
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_in_a_thread_signals_act_as_usual() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, steps=3).result().step == 3
        raised = pool.submit(StopRequest.__enter__, StopRequest()).result()
    assert raised.number is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_can_be_copied_and_sent() -> None:
    error = Interrupted(3, signal.SIGTERM, {"loss": 1.0})
    for twin in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.step, twin.number, twin.result) == (str(error), 3, signal.SIGTERM, {"loss": 1.0})

"""`tests/device.py`, which compares steps on a device with the CPU's: a cut of it, on the CPU; and it can fail."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests import device

CUT = ["rloo", "gumbel_softmax", "vimco"]


def test_steps_are_those_of_the_cpu_in_both_precisions_and_captured(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["cpu", *CUT]) == 0
    assert "24 compared with the CPU's, 0 beyond their tolerance" in capsys.readouterr().out


def test_other_draws_are_told_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the common draws float32 and float64 have their own."""
    monkeypatch.setattr(device, "DrawnOnCPU", nullcontext)
    assert device.main(["cpu", "rloo"]) == 1
    assert "WRONG rloo, bits, float32, eager" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["mtia", "rloo"]) == 0
    assert capsys.readouterr().out == "skipped: there is no mtia here\n"

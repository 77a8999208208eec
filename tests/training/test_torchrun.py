"""Runs under torchrun itself: it starts all processes again when one is killed, and hands on signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyro_discrete.checkpoints import load_checkpoint
from tests.support.rank_cases import ROOT
from tests.support.training_pairs import assert_same

SCRIPT = """
import os, signal, sys
from pathlib import Path
from pyro_discrete import NVIL, TraceELBO
from tests.support.rank_cases import At, Bits, train

path, first = Path(sys.argv[1]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
strike = At(10 if sys.argv[2] == "kill" and first else -1, 1, signal.SIGKILL)
steps = 100_000 if sys.argv[2] == "long" else 30
train(TraceELBO(NVIL(learning_rate=0.01)), Bits(), steps=steps, checkpoint=path, checkpoint_every=7, callbacks=[strike])
"""


def torchrun(*arguments: object) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*launcher, *map(str, arguments)], cwd=ROOT, env=env)


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(600)
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_ends_bit_for_bit_as_an_unbroken_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for how in ("kill", "whole"):
        assert ended(torchrun("--max-restarts", 1, script, tmp_path / f"{how}.pt", how)) == 0
    broken, whole = (load_checkpoint(tmp_path / f"{how}.pt") for how in ("kill", "whole"))
    assert broken.pop("launch") != whole.pop("launch")
    assert_same(broken, whole)


@pytest.mark.slow
def test_ctrl_c_at_the_launcher_leaves_a_checkpoint_of_all(tmp_path: Path) -> None:
    script, checkpoint = tmp_path / "script.py", tmp_path / "run.pt"
    script.write_text(SCRIPT)
    process = torchrun(script, checkpoint, "long")
    until = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert ended(process) != 0
    left = load_checkpoint(checkpoint)
    assert 1 < left["step"] < 100_000
    assert len(left["ranks"]["random"]) == 2


@pytest.mark.slow
def test_the_command_line_trains_on_two(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["sbn", "--latents", 5, "--steps", 40, "--bound-samples", 2, "--monitor-every", 20, "--out", out]
    assert ended(torchrun("-m", "models", "train", *settings)) == 0
    assert load_checkpoint(out / "checkpoint.pt")["step"] == 40
    assert len(load_checkpoint(out / "checkpoint.pt")["ranks"]["random"]) == 2
    assert (out / "summary.json").exists()
    # what was trained on two goes on with one
    resumed = [sys.executable, "-m", "models", "train", "sbn", "--resume", "--steps", "50", "--out", str(out)]
    subprocess.run(
        [*resumed, "--bound-samples", "2"], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert load_checkpoint(out / "checkpoint.pt")["step"] == 50

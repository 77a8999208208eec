"""Runs that stop and go on: bit for bit after a checkpoint, a kill or Ctrl-C, and never over another run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from models.data.catalogue import load_images
from models.data.images import Images
from models.errors import ConfigError
from models.runs import recording
from models.runs.config import CHECKPOINT_NAME, RunConfig, configure, resumed
from models.runs.recording import Metrics
from models.runs.training import run
from pyro_discrete.checkpoints import load_checkpoint, save_checkpoint
from pyro_discrete.errors import CheckpointError, NonFiniteError
from pyro_discrete.interrupts import StopRequest

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"latents": 6, "batch_size": 40, "evaluate_every": 50}


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images("digits")


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics without their timings, the one thing that may differ between equal runs."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "ms_per_step"} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    """Parameters, optimiser, estimator, batches and metrics of two runs are equal bit for bit."""
    assert_same(load_checkpoint(first / CHECKPOINT_NAME), load_checkpoint(second / CHECKPOINT_NAME))
    assert records(first) == records(second)


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"ms_per_step"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("binarisation", ["dynamic", "static"])
@pytest.mark.parametrize("estimator", ["nvil", "rloo", "gumbel_softmax"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, digits: Images, estimator: str, binarisation: str
) -> None:
    whole = configure("sbn", estimator, steps=100, binarisation=binarisation, **SMALL)
    half = configure("sbn", estimator, steps=50, binarisation=binarisation, **SMALL)
    run(whole, digits, tmp_path / "whole", bound_samples=2)
    run(half, digits, tmp_path / "halves", bound_samples=2)
    torch.manual_seed(12345)  # what happens in between has no influence
    longer = resumed(tmp_path / "halves", {"steps": 100})
    result = run(longer, digits, tmp_path / "halves", resume=True, bound_samples=2)
    assert result.training.step == 100
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "halves"))
    assert first["test_elbo"] == second["test_elbo"]


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    """A long training run in a process of its own, returned once it has gone past its third checkpoint."""
    command = [sys.executable, "-m", "models", "train", "sbn", "--estimator", "nvil", "--latents", "6"]
    command += ["--batch-size", "40", "--evaluate-every", "50", "--checkpoint-every", "25", "--threads", "1"]
    command += ["--steps", "1000000", "--out", str(out), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    metrics = out / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_text().count("\n") >= 9):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    except BaseException:  # it would go on for hours
        process.kill()
        raise
    return process


def assert_goes_on_as_if_nothing_had_happened(out: Path, digits: Images, whole: Path) -> None:
    stopped_at = load_checkpoint(out / CHECKPOINT_NAME)["step"]
    assert stopped_at >= 50
    steps = stopped_at + 30
    run(resumed(out, {"steps": steps}), digits, out, resume=True, bound_samples=1)
    run(RunConfig(**{**resumed(out, {}).to_dict(), "steps": steps}), digits, whole, bound_samples=1)
    assert_same_run(whole, out)


def test_a_killed_run_goes_on(tmp_path: Path, digits: Images) -> None:
    process = start(tmp_path / "killed")
    process.kill()
    process.communicate()
    assert_goes_on_as_if_nothing_had_happened(tmp_path / "killed", digits, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(tmp_path: Path, digits: Images, number: signal.Signals) -> None:
    out = tmp_path / "stopped"
    process = start(out)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"by {number.name}; all is saved" in message
    assert f"python -m models train sbn --estimator nvil --latents 6 {'--batch-size 40'}" in message
    assert message.rstrip().endswith("--resume")
    assert "Traceback" not in message
    assert records(out)[-1]["step"] <= load_checkpoint(out / CHECKPOINT_NAME)["step"] < records(out)[-1]["step"] + 10
    assert_goes_on_as_if_nothing_had_happened(out, digits, tmp_path / "whole")


def test_a_second_signal_acts_as_usual() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Images) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(configure("sbn", "reinforce", steps=20, **SMALL), digits, out, bound_samples=1)
    return out


def test_a_used_folder_is_left_alone(finished: Path, digits: Images) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ConfigError, match=r"already holds a run .*--resume"):
        run(configure("sbn", "nvil", steps=20, **SMALL), digits, finished)
    assert before == {path.name: path.read_bytes() for path in finished.iterdir()}


def test_out_that_is_a_file(tmp_path: Path, digits: Images) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        run(configure("sbn", "nvil", steps=20, **SMALL), digits, tmp_path / "out")


def test_a_checkpoint_of_another_model_names_every_difference(finished: Path, digits: Images) -> None:
    other = configure("categorical_vae", "reinforce", steps=20, **{**SMALL, "latents": 7})
    with pytest.raises(CheckpointError, match=r"program was 'sbn', now 'categorical_vae'") as caught:
        run(other, digits, finished, resume=True)
    assert "--latents was 6, now 7" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"--lr was 0\.001, now 0\.01"):
        resumed(finished, {"lr": 0.01, "seed": None})


def test_resuming_on_other_data(finished: Path, digits: Images) -> None:
    other = Images("digits", digits.train[1:], digits.test, digits.shape, "made by the test")
    with pytest.raises(CheckpointError, match=r"was trained on other data: digits:1500:.* now digits:1499:"):
        run(resumed(finished, {}), other, finished, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*absent"):
        resumed(tmp_path / "absent", {})


@pytest.mark.parametrize("content", [b"", b"neither torch nor zip", None])
def test_a_damaged_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    save_checkpoint(tmp_path / CHECKPOINT_NAME, {"config": {}})
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / CHECKPOINT_NAME)


def test_a_checkpoint_of_another_version(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError, match="its format is 99, expected 2"):
        load_checkpoint(tmp_path / CHECKPOINT_NAME)
    save_checkpoint(tmp_path / CHECKPOINT_NAME, {"metadata": {"config": {"program": "sbn"}}})
    with pytest.raises(CheckpointError, match="other settings than this version knows"):
        resumed(tmp_path, {})


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / CHECKPOINT_NAME, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / CHECKPOINT_NAME, {"step": 2, "unsaveable": lambda: None})
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME)["step"] == 1


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "elbo": -2.0}\n{"step": 20, "elbo": -1.5}\n{"step": 30, "elbo": -1.0}\n{"step": 4')
    metrics = Metrics(path)
    metrics.resume(20)
    assert metrics.curve("elbo") == ([10, 20], [-2.0, -1.5])
    assert path.read_text() == '{"step": 10, "elbo": -2.0}\n{"step": 20, "elbo": -1.5}\n'


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path, digits: Images) -> None:
    config = configure("sbn", "nvil", steps=60, lr=1e37, **SMALL)
    with pytest.raises(NonFiniteError) as caught:
        run(config, digits, tmp_path / "out", checkpoint_every=1)
    assert "keeps the last checkpoint" in caught.value.__notes__[0]
    assert load_checkpoint(tmp_path / "out" / CHECKPOINT_NAME)["step"] >= 1


def test_bad_intervals(tmp_path: Path, digits: Images) -> None:
    config = configure("sbn", "nvil", steps=20, **SMALL)
    with pytest.raises(ConfigError, match="--checkpoint-every is 0"):
        run(config, digits, tmp_path, checkpoint_every=0)
    with pytest.raises(ConfigError, match="--bound-samples is 0"):
        run(config, digits, tmp_path, bound_samples=0)
    assert list(tmp_path.iterdir()) == []


def test_metrics_say_what_they_promise(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert lines[-1].keys() == {"step", "elbo", "smoothed", "test_elbo", "ms_per_step"}
    assert recording.LOG_EVERY == 10


def test_the_objective_is_written_where_it_is_new(tmp_path: Path, digits: Images) -> None:
    config = configure("sbn", "reinforce", **{**SMALL, "evaluate_every": 12}, steps=25)
    run(config, digits, tmp_path, bound_samples=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 12, 20, 24, 25]
    assert [line["step"] for line in lines if "elbo" in line] == [10, 20]
    assert [line["step"] for line in lines if "test_elbo" in line] == [12, 24, 25]

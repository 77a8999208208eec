"""The folder of a run: one run at a time, a way on after each end, one line for each thing that cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.cli.commands import app
from models.data import catalogue
from models.data.catalogue import load_images
from models.errors import ConfigError
from models.programs import bandit
from models.runs.config import CHECKPOINT_NAME, configure, resumed
from models.runs.folder import refuse_used_folder, taken
from models.runs.training import run
from pyro_discrete.checkpoints import load_checkpoint
from pyro_discrete.errors import CheckpointError

SMALL: dict[str, Any] = {"latents": 4, "batch_size": 40}
OPTIONS = ["--latents", "4", "--batch-size", "40", "--bound-samples", "2"]


def refused(*arguments: object) -> str:
    """The message of a call that must end with exit code 2 and one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 or "─ Error ─" in result.stderr, result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(configure("sbn", "nvil", steps=20, **SMALL), load_images("digits"), out, bound_samples=1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_on_a_folder_writes_nothing(finished: Path, tmp_path: Path, resume: bool) -> None:
    out = finished if resume else tmp_path / "new"
    config = configure("sbn", "nvil", steps=30, **SMALL)
    with taken(out):
        before = contents(out)
        with pytest.raises(ConfigError, match=r"Another run is at work in .*wait for it"):
            run(config, load_images("digits"), out, resume=resume)
        assert contents(out) == before
    assert out.exists() == resume


def test_a_second_run_that_comes_when_the_first_has_begun_writes_nothing(finished: Path) -> None:
    """As if both had looked at the folder before either wrote."""
    before = contents(finished)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(configure("sbn", "rloo", steps=30, **SMALL), load_images("digits"), finished)
    assert contents(finished) == before


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(finished: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert "leave out resume to start anew" in refused("train", "sbn", "--out", tmp_path, "--resume")
    run(configure("sbn", "nvil", steps=10, **SMALL), load_images("digits"), tmp_path, bound_samples=1)
    assert load_checkpoint(tmp_path / CHECKPOINT_NAME)["step"] == 10
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert max(steps) == 10


@pytest.mark.parametrize("content", ["{}", "[1]", "mine", '{"program": "sbn"}'])
def test_another_programs_settings_are_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="already holds a run"):
        refuse_used_folder(tmp_path)


def test_resuming_behind_what_is_done_or_another_program(finished: Path) -> None:
    before = contents(finished)
    assert "--steps is 12, and the run in" in refused("train", "sbn", "--out", finished, "--resume", "--steps", 12)
    assert "program was 'sbn', now 'gmm'" in refused("train", "gmm", "--out", finished, "--resume")
    assert "program was 'sbn', now 'hmm'" in refused("train", "hmm", "--out", finished, "--resume", "--steps", 40)
    with pytest.raises(CheckpointError, match="has made 20 already"):
        run(configure("sbn", "nvil", steps=10, **SMALL), load_images("digits"), finished, resume=True)
    assert contents(finished) == before


def test_a_flipped_bit_in_a_runs_checkpoint(finished: Path, tmp_path: Path) -> None:
    whole = bytearray((finished / CHECKPOINT_NAME).read_bytes())
    for place in range(40, 8 * len(whole), 8 * len(whole) // 25):
        whole[place // 8] ^= 1 << place % 8
        (tmp_path / CHECKPOINT_NAME).write_bytes(whole)
        whole[place // 8] ^= 1 << place % 8
        with pytest.raises(CheckpointError, match="damaged"):
            resumed(tmp_path, {})
    assert "damaged or no checkpoint" in refused("train", "sbn", "--out", tmp_path, "--resume")


@pytest.mark.parametrize("seed", ["1e23", "100000000000000000000000", "4294967296", "-1", "2.5"])
@pytest.mark.parametrize("command", [["train", "sbn"], ["bandit"], ["demo"], ["compare", "sbn"]])
def test_seeds_that_no_generator_takes(command: list[str], seed: str, tmp_path: Path) -> None:
    message = refused(*command, "--seed", seed, "--out", tmp_path / "out")
    assert "seed" in message
    assert not (tmp_path / "out").exists()


def test_more_than_the_memory_holds(tmp_path: Path) -> None:
    message = refused("train", "sbn", "--latents", 10**13, "--steps", 3, "--out", tmp_path / "out")
    assert "not enough memory for this" in message
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written_to(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "file is a file" in refused("train", "sbn", "--out", file / "below", *OPTIONS)
    assert "file is a file" in refused("bandit", "--out", file / "below", "--steps", 5)
    assert "could not be written" in refused("report", finished, "--out", file / "report.html")
    assert file.read_text() == "mine"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "summary.json").write_text("half of")
    assert "damaged: it is no JSON" in refused("report", tmp_path)


FULL = """
import resource, signal, sys
from models.cli.commands import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
app(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    for room in (100, 3000, 40_000):
        out = tmp_path / str(room)
        command = ["train", "sbn", *OPTIONS, "--steps", "20", "--out", str(out)]
        done = subprocess.run([sys.executable, "-c", FULL, str(room), *command], capture_output=True, text=True)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "could not be written" in done.stderr or "File too large" in done.stderr
        assert not list(out.rglob("*.part"))
        assert all(len(path.read_bytes()) < room for path in out.rglob("*.png"))


@pytest.mark.parametrize("command", [["bandit", "--estimators", "rloo"], ["train", "sbn"]])
def test_an_interrupt_outside_of_the_steps_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(bandit, "learn_policy", interrupted)
    monkeypatch.setattr(catalogue, "load_data", interrupted)
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 128 + signal.SIGINT
    assert "Interrupted" in result.stderr
    assert "Traceback" not in result.output

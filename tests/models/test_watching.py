"""A run under way, watched from outside."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest
from typer.testing import CliRunner

from models.cli.commands import app
from models.data.catalogue import load_images
from models.errors import ConfigError
from models.reports.progress import Progress, curve_text
from models.runs.config import configure
from models.runs.training import run


def test_it_shows_how_far_a_run_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = configure("sbn", "rloo", latents=5, steps=60, evaluate_every=20)
    run(config, load_images("digits"), out, bound_samples=2, monitor_every=20)
    said = CliRunner().invoke(app, ["watch", str(out), "--every", "0", "--picture", str(tmp_path / "curves.png")])
    assert said.exit_code == 0, said.output
    for part in ("sbn rloo: step 60 of 60", "steps a second, ended", "test ELBO", "signal over noise", "dead latents"):
        assert part in said.output
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0.05


def test_it_reads_a_run_that_is_just_writing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"steps": 100, "program": "sbn", "estimator": "nvil"}))
    assert Progress.of(tmp_path).line == "sbn nvil: step 0 of 100"
    lines = [json.dumps({"step": 10 * i, "smoothed": -30.0 + i, "ms_per_step": 20.0}) for i in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 50, "smoo')
    progress = Progress.of(tmp_path)
    assert progress.line == "sbn nvil: step 40 of 100, 50.0 steps a second, 0:00:01 left"
    assert curve_text(*progress.metrics.curve("smoothed"), 4) == "▁▃▆█"


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run \(config.json\)"):
        Progress.of(tmp_path)

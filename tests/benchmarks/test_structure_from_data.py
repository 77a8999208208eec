"""The lines of structure from data: what they say of short runs, and how they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.learning.from_data import structure
from benchmarks.learning.from_data.line import Line
from benchmarks.learning.structure_from_data import app


def test_graphs_are_held_to_their_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forty exact steps come within the mark, two do not; without Sachs' data its line says what to install."""
    monkeypatch.setattr(structure, "MARKS", {3: 0.05})
    monkeypatch.setattr(structure, "RUNS", {3: {"enumerate": (1, 40, 0.1), "rloo": (2, 2, 0.1)}})
    (tmp_path / "empty").mkdir()
    exact, sampled, sachs = structure.lines(data_dir=tmp_path / "empty")
    assert exact.right
    assert float(exact.found) < 0.05
    assert not sampled.right
    assert not sachs.right
    assert "cyto_full_data.csv" in sachs.found


def test_lines_are_printed_and_one_that_is_short_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line("structure", "a claim", "at most 1", "0.5", True), Line("structure", "more", "at most 1", "2", False)]
    monkeypatch.setattr(structure, "lines", lambda seed, data_dir: lines[:1])
    done = CliRunner().invoke(app, ["--models", "structure"])
    assert (done.exit_code, done.output) == (0, "structure: a claim: right, 0.5 (at most 1)\n")
    monkeypatch.setattr(structure, "lines", lambda seed, data_dir: lines)
    assert CliRunner().invoke(app, ["--models", "structure"]).exit_code == 1
    assert "none of" in CliRunner().invoke(app, ["--models", "graphs"]).output

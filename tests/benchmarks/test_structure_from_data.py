"""The lines of structure from data: what they say of short runs, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.learning.from_data import structure
from benchmarks.learning.from_data.line import Line
from benchmarks.learning.structure_from_data import app
from models.errors import DataError


def test_graphs_are_held_to_their_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forty exact steps come within the mark, two do not; without Sachs' data it is said what to install."""
    monkeypatch.setattr(structure, "MARKS", {3: 0.05})
    monkeypatch.setattr(structure, "RUNS", {3: {"enumerate": (1, 40, 0.1), "rloo": (2, 2, 0.1)}})
    (tmp_path / "empty").mkdir()
    lines = structure.lines(data_dir=tmp_path / "empty")
    exact, sampled = next(lines), next(lines)
    assert exact.right
    assert float(exact.found) < 0.05
    assert not sampled.right
    with pytest.raises(DataError, match=r"cyto_full_data\.csv"):
        next(lines)


def test_lines_are_printed_and_one_that_is_short_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line("structure", "a claim", "at most 1", "0.5", True), Line("structure", "more", "at most 1", "2", False)]
    monkeypatch.setattr(structure, "lines", lambda seed, data_dir: lines[:1])
    done = CliRunner().invoke(app, ["--models", "structure"])
    assert (done.exit_code, done.output) == (0, "structure: a claim: right, 0.5 (at most 1)\n")
    monkeypatch.setattr(structure, "lines", lambda seed, data_dir: lines)
    assert CliRunner().invoke(app, ["--models", "structure"]).exit_code == 1
    assert "none of" in CliRunner().invoke(app, ["--models", "graphs"]).output


def test_lines_of_several_seeds_and_data_that_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(seed: int, data_dir: Path | None) -> Iterator[Line]:
        yield Line("structure", "a claim", "at most 1", f"{seed}", seed <= 1, float(seed))
        raise DataError("Run `pip install data`.")

    monkeypatch.setattr(structure, "lines", lines)
    done = CliRunner().invoke(app, ["--models", "structure", "--seeds", "0,1,2"])
    assert done.exit_code == 1
    first, second = done.output.splitlines()
    assert first == "structure: a claim: short, 0; 3 seeds, 2 right: 0, 1, 2, mean 1, deviation 1 (at most 1)"
    assert second == "structure: short, Run `pip install data`."


def test_a_run_of_each_seed_is_told() -> None:
    given = ["--variables", "3", "--estimator", "rloo", "--particles", "2", "--steps", "2", "--lr", "0.1"]
    done = CliRunner().invoke(structure.app, [*given, "--seeds", "0,1"])
    assert done.exit_code == 0, done.output
    assert [line[:23] for line in done.output.splitlines()] == ["seed 0: total variation", "seed 1: total variation"]

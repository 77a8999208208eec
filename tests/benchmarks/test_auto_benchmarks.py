"""The scripts behind costs and "auto" run to their end on a small scale, and what they report is in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.auto import auto_models, auto_table, eager_models
from benchmarks.noise import dependency_costs
from pyro_discrete import Family
from pyro_discrete.planning.automatic import TABLE_FILE


def test_dependency_costs_reports_both_kinds_of_costs(tmp_path: Path) -> None:
    dependency_costs.main(draws=12, small=True, out=tmp_path)
    rows = json.loads((tmp_path / "dependency_costs.json").read_text())
    assert {row["wiring"] for row in rows} == set(dependency_costs.WIRINGS)
    assert all(row["full"] > row["saved"] for row in rows if row["estimator"] == "reinforce")


@pytest.mark.slow
def test_the_table_behind_auto_is_measured_and_held_against_every_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_table, "SLOWEST", 10.0)
    monkeypatch.setattr(auto_table, "LEAST_DRAWS", 2)
    cell = auto_table.Cell(Family.BERNOULLI, 8, 1, 1, auto_table.Shape(batch=20, side=8, elements=3, values=2))
    assert set(cell.key()) == set(json.loads(TABLE_FILE.read_text())[0]) - {"ranking"}
    ranking = auto_table.measure_cell(cell, seconds=0.0, steps=2)
    assert [product for _, product in ranking] == sorted(product for _, product in ranking)
    assert ranking[0] == ["enumerate", 0.0]
    found = auto_models.compare_auto("sbn", {"latents": 3}, 1, steps=1, seconds=0.0)
    assert (found["auto"], found["best"], found["ratio"]) == (["enumerate"], "enumerate", 1.0)


def test_cells_are_foretold_from_the_others() -> None:
    ratios = auto_models.foretold()
    assert len(ratios) > 40
    assert min(ratios) == 1.0
    assert sum(ratio <= 1.3 for ratio in ratios) > 0.7 * len(ratios)


def test_eager_steps_of_models_are_timed_beside_pyro(capsys: pytest.CaptureFixture[str]) -> None:
    eager_models.main(turns=1, steps=1, only="gmm")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["1", "2", "10"]
    assert all(float(line.split(" | ")[3]) > 0 for line in lines[2:])

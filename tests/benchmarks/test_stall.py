"""The stall of the benchmarks: coinciding components part where the theory says, and the scripts run."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.learning import stall, stall_third_order


def test_the_threshold_of_soft_values_is_known_at_two_temperatures():
    """c1 = c2 = 1/3 at t = 1, where the relaxed value is uniform; the discrete bound's at t = 0."""
    assert stall.soft_threshold(1.0) == pytest.approx(0.25, abs=1e-4)
    assert stall.soft_threshold(1e-3, points=2_000_001) == pytest.approx(1.0, abs=2e-3)
    assert stall.soft_threshold(1.0, analytic=True) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "ratio", "part"),
    [
        ("enumerate", 0.8, False),
        ("enumerate", 1.4, True),
        ("reinmax", 0.8, False),
        ("reinmax", 1.4, True),
        ("gumbel_softmax, t = 0.35", 0.45, False),
        ("gumbel_softmax, t = 0.35", 0.9, True),
        ("gumbel_softmax, t = 1", 0.9, True),
        ("gumbel_softmax, t = 0.35, analytic", 0.6, False),
        ("gumbel_softmax, t = 0.35, analytic", 1.05, True),
    ],
)
def test_components_part_above_the_threshold_and_merge_below(name, ratio, part):
    grown = stall.growth(name, ratio, steps=60)
    assert grown > 1.5 if part else abs(grown) < 0.7


def test_the_script_writes_its_section_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(stall, "ESTIMATORS", {n: stall.ESTIMATORS[n] for n in ("reinmax", "gumbel_softmax, t = 1")})
    monkeypatch.setattr(stall, "MIXTURE", ["reinmax"])
    monkeypatch.setattr(stall, "FOLLOWED", ["reinmax"])
    monkeypatch.setattr(stall, "DRAWS", 2)
    app = typer.Typer()
    app.command()(stall.main)
    few = ["--seeds", "1", "--steps", "3", "--ratios", "0.5", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, few)
    assert result.exit_code == 0, result.output
    kept = (tmp_path / "stall.json").read_text()
    assert set(json.loads(kept)["mixture"]["reinmax"]) == set(stall.CONDITIONS)
    assert "| reinmax | 1.00 |" in result.stdout
    assert "| step 0 | step 1 | step 3 |" in result.stdout
    assert CliRunner().invoke(app, few).exit_code == 0
    assert (tmp_path / "stall.json").read_text() == kept


def test_what_third_order_drives_and_what_holds_it_back_are_known_in_cases():
    """Kurtosis 1 of two points, 3 of a Gaussian; gamma / c1 = (1 / 8) / (1 / 3) at t = 1; nothing at t = 0."""
    assert stall_third_order.driven(torch.tensor([-1.0, 1.0])) == pytest.approx(2 / 3)
    uniform = (torch.arange(100_001, dtype=torch.float64) + 0.5) / 100_001
    assert stall_third_order.driven(torch.special.ndtri(uniform)) == pytest.approx(0.0, abs=2e-3)
    assert stall_third_order.held_back(1.0) == pytest.approx(0.75, abs=1e-6)
    assert stall_third_order.held_back(1e-3, points=2_000_001) == pytest.approx(0.0, abs=5e-3)
    # without noise w is 1 / 2 at h = 0 and E[D] = h / 2, so that gamma is c1 / 2: the limit of high temperatures
    assert stall_third_order.held_back(1e3) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "enumerate",
        "straight_through",
        "straight_through_gumbel_softmax, t = 0.65",
        "straight_through_gumbel_softmax, t = 0.2",
    ],
)
def test_third_order_decides_who_leaves_the_collapse(name):
    held_back, make = stall_third_order.PAIRS[name]
    grown = stall_third_order.grown(make, steps=40)
    parts = held_back < stall_third_order.driven(stall.two_clusters())
    assert grown > 1.3 if parts else 0.3 < grown < 0.95


def test_the_script_of_third_order_writes_its_tables_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    for table in ("PAIRS", "WHOLE"):
        monkeypatch.setattr(stall_third_order, table, {"enumerate": getattr(stall_third_order, table)["enumerate"]})
    app = typer.Typer()
    app.command()(stall_third_order.main)
    few = ["--seeds", "1", "--steps", "3", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, few)
    assert result.exit_code == 0, result.output
    kept = (tmp_path / "stall_third_order.json").read_text()
    assert json.loads(kept)["mixture"]["enumerate"].keys() == {"one", "own"}
    assert "| enumerate | 0.00 | 2.3" in result.stdout
    assert "| enumerate | 0 of 1 leave; " in result.stdout
    assert CliRunner().invoke(app, few).exit_code == 0
    assert (tmp_path / "stall_third_order.json").read_text() == kept

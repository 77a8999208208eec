"""The toys of papers run to their end on a small scale, and their exact parts are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest
import torch

from benchmarks.literature import matchings, rankings, results, subsets
from benchmarks.literature.training_curves import curve


def test_subsets_measures_each_estimator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["straight_through", "rloo, 2 particles", "rebar"]
    subsets.main(tmp_path, ";".join(names), calls=2, warm_up=2, instances=1)
    rows = json.loads((tmp_path / "literature.json").read_text())["subsets"]
    assert list(rows) == names
    assert all(row["gradients"] == 2 * subsets.ELEMENTS and 0 <= row["bias"] <= row["error"] for row in rows.values())
    assert rows["straight_through"]["error"] < rows["rebar"]["error"]
    assert "rloo, 2 particles: bias" in capsys.readouterr().out
    assert matplotlib.image.imread(tmp_path / "literature.png").std() > 0.05


def test_every_estimator_of_subsets_gives_gradients() -> None:
    """Shapes, and those that are unbiased in sight of the exact gradient: within 6 standard errors, by any coordinate.

    250 gradients each, of 9 estimators and 10 coordinates: by chance in fewer than one of 10^6 runs.
    """
    logits, b = subsets.instance(subsets.SEEDS[0])
    exact = subsets.exact_gradient(logits, b)
    biased = ("straight_through", "gumbel", "nvil")  # nvil rescales its gradients, as its class declares
    for name, estimate in subsets.ESTIMATES.items():
        found = subsets.gradients(estimate, logits, b, calls=1, warm_up=0, seed=1)
        assert found.shape == (subsets.ELEMENTS, subsets.ITEMS), name
        if not name.startswith(biased):
            error = found.std(0) / len(found) ** 0.5
            assert float(((found.mean(0) - exact) / error).abs().max()) < 6, name


def test_the_exact_gradient_of_subsets() -> None:
    """The cost is |b|^2 + sum of z (1 - 2 b): its gradient is the covariance of z with that sum, by the listed law."""
    logits, b = subsets.instance(subsets.SEEDS[1])
    law = subsets.KSubset(logits, subsets.CHOSEN)
    every = law.enumerate_support()
    p = law.log_prob(every).exp()
    mean = p @ every
    covariance = (every - mean).T @ (p.unsqueeze(-1) * (every - mean))
    torch.testing.assert_close(subsets.exact_gradient(logits, b), covariance @ (1 - 2 * b))


def test_measures_of_known_gradients() -> None:
    exact = torch.tensor([1.0, 0.0])
    found = subsets.measures(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), exact)
    assert found["bias"] == pytest.approx(0.0, abs=1e-6)
    assert found["error"] == pytest.approx(1 - 0.5**0.5, rel=1e-6)
    assert found["spread"] == pytest.approx(0.0, abs=1e-6)
    assert (found["distance"], found["variance"]) == (0.0, 2.0)


def test_costs_of_rankings_and_matchings() -> None:
    """The least, 9.0223 - 2 <I, T> in the paper's setting, and equal logits, by hand."""
    matrix = rankings.target(8)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(8, dtype=torch.float64))
    least = 8 + float(matrix.square().sum()) - 2 * 8 * (1 / 8 + 0.05)
    cost = rankings.expected_cost(8)
    falling = -1e3 * torch.arange(8, dtype=torch.float64)
    assert cost(falling) == pytest.approx(least)
    assert least == pytest.approx(6.223, abs=1e-3)
    assert cost(torch.zeros(8, dtype=torch.float64)) == pytest.approx(8 + float(matrix.square().sum()) - 2)
    gibbs = matchings.expected_cost(matchings.GibbsMatching)
    assert gibbs(torch.zeros(5, 5)) == pytest.approx(-1.0)
    assert gibbs(100 * torch.eye(5)) == pytest.approx(-5.0)
    assert matchings.expected_cost(matchings.SequentialMatching)(100 * torch.eye(5)) == -5.0


def test_rankings_and_matchings_train(tmp_path: Path) -> None:
    rankings.main(tmp_path, ",".join(rankings.RUNS), scale=2e-4, items=3)
    matchings.main(tmp_path, ";".join(matchings.RUNS), scale=1e-3, rows=3)
    found = json.loads((tmp_path / "literature.json").read_text())
    assert {toy: list(rows) for toy, rows in found.items()} == {
        "rankings": list(rankings.RUNS),
        "matchings": list(matchings.RUNS),
    }
    assert matplotlib.image.imread(tmp_path / "literature.png").std() > 0.05
    assert set(results.PUBLISHED) == {"subsets", "matchings", "rankings"}


def test_a_matching_is_learned() -> None:
    """Three rows, 300 steps: from one pair at the start to nearly three."""
    structure, run = matchings.RUNS["Gibbs, rloo"]
    found = curve(matchings.pair(structure, 3), run.scaled(0.06), matchings.expected_cost(structure), rate=0.05, seed=0)
    costs = list(found["curve"].values())
    assert costs[0] == pytest.approx(-1.0)
    assert costs[-1] < -2.5

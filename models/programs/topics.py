"""Topics: each document mixes a few of them, and each of its words comes from one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical, Dirichlet
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.documents import NO_WORD, Documents
from models.errors import ConfigError
from models.programs.program import LatentClasses, Program, Settings

__all__ = ["TopicModel"]

CONCENTRATION = 0.1
"""Of the Dirichlet distribution of a document's topics."""
SHARED = 0.2
"""The share of each topic's words that come from the whole corpus: no word is impossible."""


class TopicModel(Program):
    """Sites "shares": how much of a document is of each topic; "z": the topic of each word; "x": the words.

    A word is drawn from the table of its topic, which is softened by the corpus's own frequencies.

    - `frequencies` `[words]`: those of the corpus, positive. `topics`: how many.
    - `guide`: "marginal" leaves the topics of words to the model, where they are summed out; "amortised" draws an
      integer for each word. A document's shares are drawn in both.

    The guide's shares are Dirichlet, its concentrations the prior's and a vote of each word, from a table; the topic of
    a word goes by the shares and a second table. Both are of the form that the exact conditionals have.

    Source: Blei, Ng and Jordan (2003), Latent Dirichlet allocation; networks in the guide's place: Srivastava and
    Sutton (2017), Autoencoding variational inference for topic models.
    """

    summary = "latent Dirichlet allocation: the topics of documents and of each word"
    reads = Documents
    data = "simulated-documents"
    size = "{categories} topics"
    finds = True
    plates_inside = 1
    defaults: ClassVar = {"categories": 4, "guide": "amortised", "lr": 0.05}
    frequencies: Tensor

    def __init__(self, frequencies: Tensor, topics: int = 4, guide: str = "amortised") -> None:
        super().__init__()
        if guide not in LatentClasses.GUIDES:
            raise ConfigError(f"Unknown guide {guide!r}; expected {' or '.join(LatentClasses.GUIDES)}.")
        self.sums = guide == "marginal"
        self.register_buffer("frequencies", frequencies / frequencies.sum(), persistent=False)
        self.words = nn.Parameter(self.frequencies.log() + 0.5 * torch.randn(topics, len(frequencies)))
        self.encoder = nn.ParameterDict({"votes": nn.Parameter(0.1 * torch.randn(len(frequencies), topics))})
        if not self.sums:
            self.encoder["topics"] = nn.Parameter(torch.zeros(len(frequencies), topics))

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> TopicModel:
        assert isinstance(data, Documents)
        counts = data.train[data.train != NO_WORD].bincount(minlength=len(data.vocabulary))
        return cls(counts + 1.0, config.categories, config.guide)

    @property
    def log_topics(self) -> Tensor:
        """The logarithm of each topic's probabilities of words, `[topics, words]`."""
        own = self.words.log_softmax(-1) + math.log(1 - SHARED)
        return torch.logaddexp(own, self.frequencies.log() + math.log(SHARED))

    def concentrations(self, x: Tensor) -> Tensor:
        """Of the guide's shares, `[n, topics]`, for documents `[n, longest]`."""
        votes = self.encoder["votes"].softmax(-1)[x.clamp(min=0)]
        return CONCENTRATION + torch.where((x != NO_WORD).unsqueeze(-1), votes, 0.0).sum(-2)

    def model(self, x: Tensor) -> None:
        pyro.module("topic_model", self)
        log_topics, there = self.log_topics, x != NO_WORD
        prior = Dirichlet(torch.full((len(log_topics),), CONCENTRATION, device=x.device))
        with pyro.plate("data", len(x), dim=-2):
            shares = pyro.sample("shares", prior.expand([len(x), 1]))
            with pyro.plate("words", x.shape[1], dim=-1), poutine.mask(mask=_as_mask(there)):
                z = pyro.sample("z", Categorical(probs=shares))
                # The density of Categorical(logits=log_topics[z]), without a row of the table for each word.
                pyro.factor("x", log_topics[z, x.clamp(min=0)])

    def guide(self, x: Tensor) -> None:
        pyro.module("topic_model", self)
        with pyro.plate("data", len(x), dim=-2):
            shares = pyro.sample("shares", Dirichlet(self.concentrations(x).unsqueeze(-2)))
            if self.sums:
                return
            logits = shares.clamp(min=torch.finfo(shares.dtype).tiny).log() + self.encoder["topics"][x.clamp(min=0)]
            with pyro.plate("words", x.shape[1], dim=-1), poutine.mask(mask=_as_mask(x != NO_WORD)):
                pyro.sample("z", Categorical(logits=logits))

    def values(self, x: Tensor) -> int:
        return x.shape[1] * len(self.words)


def _as_mask(there: Tensor) -> Any:
    """Pyro's annotation of masks leaves out tensors of booleans."""
    return there

"""A hidden Markov model of sequences of symbols, several at once and of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.sequences import Sequences
from models.programs.program import LatentClasses, Settings, dense

__all__ = ["HiddenMarkovModel"]


class HiddenMarkovModel(LatentClasses):
    """Sites "z_0", "z_1" ...: the state at each step; "x_0" ...: the symbol. Steps after a sequence's end are masked.

    - `frequencies` `[symbols]`: shares of the symbols, from which all states' emissions start, a little apart.
    - `states`: how many. `hidden`: units of the hidden layers of the guide's network.

    The guide is a chain too, as the exact posterior is: its logits at a step are a network's, which reads the symbol
    and its two neighbours, plus a row of a table, chosen by the state before.

    Source: Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition.
    """

    summary = "hidden Markov model: words or characters in sequences of unequal length"
    reads = Sequences
    data = "simulated-chains"
    defaults: ClassVar = {"categories": 4, "hidden_layers": 1, "hidden_units": 32, "guide": "amortised", "lr": 0.02}

    def __init__(
        self, frequencies: Tensor, states: int = 4, hidden: Sequence[int] = (32,), guide: str = "amortised"
    ) -> None:
        super().__init__(guide)
        symbols = len(frequencies)
        self.start = nn.Parameter(torch.zeros(states))
        self.transition = nn.Parameter(0.5 * torch.randn(states, states))
        self.emission = nn.Parameter(frequencies.log() + 0.5 * torch.randn(states, symbols))
        if not self.marginal:
            self.encoder = _ChainEncoder(symbols, hidden, states)

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> HiddenMarkovModel:
        assert isinstance(data, Sequences)
        counts = 1.0 + data.train[data.train >= 0].bincount(minlength=len(data.vocabulary))
        return cls(counts / counts.sum(), config.categories, config.hidden, config.guide)

    def model(self, x: Tensor) -> None:
        pyro.module("hidden_markov_model", self)
        there: Any = x >= 0
        with pyro.plate("data", len(x)):
            logits = self.start
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=there[:, t]):
                    z = pyro.sample(f"z_{t}", Categorical(logits=logits))
                    pyro.sample(f"x_{t}", Categorical(logits=self.emission[z]), obs=x[:, t].clamp(min=0))
                logits = self.transition[z]

    def guide(self, x: Tensor) -> None:
        pyro.module("hidden_markov_model", self)
        if self.marginal:
            return
        there: Any = x >= 0
        evidence = self.encoder(x)
        with pyro.plate("data", len(x)):
            logits = evidence[:, 0]
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=there[:, t]):
                    z = pyro.sample(f"z_{t}", Categorical(logits=logits))
                if t + 1 < x.shape[1]:
                    logits = evidence[:, t + 1] + self.encoder.transition[z]

    def values(self, x: Tensor) -> int:
        return x.shape[1] * self.emission.numel()


class _ChainEncoder(nn.Module):
    """Logits `[batch, steps, states]` from a symbol and its neighbours, and the table that couples two steps."""

    def __init__(self, symbols: int, hidden: Sequence[int], states: int) -> None:
        super().__init__()
        width = hidden[0] if hidden else states
        self.embedding = nn.Embedding(symbols + 1, width, padding_idx=0)
        self.network = dense([3 * width, *hidden[1:], states])
        self.transition = nn.Parameter(torch.zeros(states, states))

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding(x + 1)
        around = nn.functional.pad(words, (0, 0, 1, 1))
        return self.network(torch.cat([around[:, :-2], words, around[:, 2:]], -1))

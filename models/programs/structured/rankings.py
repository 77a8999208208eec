"""A consensus behind several rankings of the same candidates: a latent ranking, seen through noisy ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.rankings import ABSENT, Rankings
from models.programs.program import Program, Settings, dense
from pyro_discrete.distributions import PlackettLuce, inverse

__all__ = ["ConsensusRanking"]

LAST = -60.0
"""Logits of who takes no part, this and multiples of it: they come after all others, in the order of their numbers."""


class ConsensusRanking(Program):
    """Site "z": the true order of a season's candidates; "x": the order of those that each challenge sees.

    A candidate's strength is that of the place in the true order, a table that all seasons share. Each challenge is a
    race of these strengths. The guide is a race too: a network gives each candidate a logit from the places reached.

    - `candidates`: how many a season has. `hidden`: units of the hidden layers of the guide's network.

    Source: Plackett (1975), The analysis of permutations; Luce (1959), Individual choice behavior.
    """

    summary = "latent ranking: the order of candidates behind several challenges"
    reads = Rankings
    data = "simulated-rankings"
    size = "a ranking a season"
    finds = True
    defaults: ClassVar = {"hidden_layers": 1, "hidden_units": 16, "batch_size": 10, "lr": 0.02}

    def __init__(self, candidates: int, hidden: Sequence[int] = (16,)) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.linspace(1.0, -1.0, candidates))
        width = hidden[-1] if hidden else 8
        self.encoder = nn.ModuleDict({"challenge": dense([2, *hidden, width]), "candidate": dense([width, 1])})

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> ConsensusRanking:
        return cls(data.train.shape[-1], config.hidden)

    def model(self, x: Tensor) -> None:
        pyro.module("consensus_ranking", self)
        there = x != ABSENT
        with pyro.plate("data", len(x)):
            order = pyro.sample("z", PlackettLuce(_last(torch.zeros_like(self.strength), there.any(1))))
            strength = self.strength[inverse(order)]  # [batch, candidates]
            race = PlackettLuce(_last(strength.unsqueeze(-2), there))
            pyro.sample("x", race.to_event(1), obs=_order(x))

    def guide(self, x: Tensor) -> None:
        pyro.module("consensus_ranking", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", PlackettLuce(self.logits(x)))

    def logits(self, x: Tensor) -> Tensor:
        """The guide's, `[batch, candidates]`: the larger, the better a candidate."""
        there = x != ABSENT
        number = there.sum(-1, keepdim=True)
        height = 1 - 2 * x / (number - 1).clamp(min=1)  # of a place: from 1 for the best to -1 for the last
        seen = torch.stack([height, (number / x.shape[-1]).expand(x.shape)], -1)
        found = self.encoder["challenge"](seen.to(self.strength.dtype))
        found = torch.where(there.unsqueeze(-1), found, 0.0).sum(1)  # [batch, candidates, width]
        return _last(self.encoder["candidate"](found).squeeze(-1), there.any(1))

    def values(self, x: Tensor) -> int:
        return x[0].numel() * x.shape[-1]


def _last(logits: Tensor, there: Tensor) -> Tensor:
    """Those who are absent come last, in a fixed order that has probability one: neither term of a bound sees them."""
    return torch.where(there, logits, LAST * (1 + torch.arange(there.shape[-1], device=there.device)))


def _order(places: Tensor) -> Tensor:
    """Candidates by place, the absent ones last by their numbers: `[..., candidates]`."""
    n = places.shape[-1]
    return torch.where(places == ABSENT, n + torch.arange(n, device=places.device), places).argsort(-1)

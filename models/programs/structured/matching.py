"""Which neuron is which? A latent matching of two animals' neurons, seen through their contacts."""

from __future__ import annotations

from typing import ClassVar

import pyro
import torch
import torch.nn.functional as F
from pyro.distributions import Bernoulli
from torch import Tensor, nn

from models.data.connectomes import Connectomes
from models.data.dataset import Dataset
from models.programs.program import Program, Settings
from pyro_discrete.distributions import SequentialMatching

__all__ = ["MatchedNeurons"]

AT_FIRST = -3.0, 4.0
"""Of a contact's log-odds: without contacts in the first animal, and more for each unit of log(1 + contacts) there."""
SHARPNESS = 10.0
"""Logits of the guide are so many times its parameters: under one learning rate the matching moves faster than the
odds, which would else learn that the first animal tells nothing, before anything is matched."""


class MatchedNeurons(Program):
    """Site "z": which neuron of the first animal each of the second is; "x": between which of these there are contacts.

    The first animal's contacts, put in the order of the second's neurons, give log-odds of a contact in the second, by
    a linear law of log(1 + contacts) of each kind that all pairs of neurons share. Known neurons stay where they are;
    contacts with them tell of the others. The guide is a matching with free logits.

    - `kinds`: of contacts. `neurons`: how many there are, of which the first `known` are the same in both animals.

    Source: seeded graph matching, Fishkind et al. (2019), with a likelihood in place of a count of edges.
    """

    summary = "latent matching: which neurons of two animals are the same"
    reads = Connectomes
    data = "simulated-connectomes"
    size = "a matching a pair"
    finds = True
    defaults: ClassVar = {"batch_size": 1, "lr": 0.005}

    def __init__(self, kinds: int, neurons: int, known: int = 0) -> None:
        super().__init__()
        self.known = known
        self.bias = nn.Parameter(torch.full((kinds,), AT_FIRST[0]))
        self.slope = nn.Parameter(AT_FIRST[1] * torch.eye(kinds))
        others = neurons - known
        self.encoder = nn.ParameterDict({"logits": nn.Parameter(torch.zeros(others, others))})

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> MatchedNeurons:
        assert isinstance(data, Connectomes)
        return cls(data.train.shape[2], data.train.shape[-1], data.known)

    def model(self, x: Tensor) -> None:
        pyro.module("matched_neurons", self)
        first, second = x.unbind(1)  # [batch, kinds, n, n]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", SequentialMatching(torch.zeros_like(self.encoder["logits"])))
            different = ~torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
            contact = Bernoulli(logits=self.log_odds(first, z)).mask(different)
            pyro.sample("x", contact.to_event(3), obs=(second > 0).to(x.dtype))

    def guide(self, x: Tensor) -> None:
        pyro.module("matched_neurons", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.matching)

    @property
    def matching(self) -> SequentialMatching:
        """The guide's, the same whatever the pair."""
        return SequentialMatching(SHARPNESS * self.encoder["logits"])

    def log_odds(self, contacts: Tensor, z: Tensor) -> Tensor:
        """Of contacts in the second animal `[..., kinds, n, n]`, from the first one's and a matching z `[..., n]`."""
        same = F.one_hot(z, len(self.encoder["logits"])).to(contacts.dtype)
        same = F.pad(same, (self.known, 0, self.known, 0))
        same = same + F.pad(torch.eye(self.known, device=same.device), (0, z.shape[-1], 0, z.shape[-1]))
        same = same.unsqueeze(-3)
        moved = same @ contacts.log1p() @ same.mT  # [..., kinds, n, n], in the order of the second animal
        return self.bias[:, None, None] + torch.einsum("kc,...cij->...kij", self.slope, moved)

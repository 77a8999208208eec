"""A motif in DNA: a short pattern that stands once in every sequence, at a place that is latent."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.sequences import BASES, PlantedMotifs
from models.programs.program import LatentClasses, Settings

__all__ = ["MotifPlaces"]

CANDIDATES, KEPT, FIRST_STEPS = 200, 20, 10
"""Of the start: windows tried, those kept after a step of EM, and steps of EM that these get."""


class MotifPlaces(LatentClasses):
    """Site "z": where the motif of each sequence begins; "x": the bases, from the profile within it, else background.

    - `profile` `[width, bases]`, `background` `[bases]`: where the probabilities in the motif and around it start.
    - `length`: bases of a sequence; all places at which the motif fits are as probable before.

    The guide is one convolution, which gives each place the sum of a weight for each base of its window: the exact
    posterior is of this form.

    Source: Lawrence and Reilly (1990), An expectation maximization algorithm for the identification and
    characterization of common sites in unaligned biopolymer sequences.
    """

    summary = "motif discovery: a pattern at an unknown place of each DNA sequence"
    reads = PlantedMotifs
    data = "simulated-motifs"
    size = "a place a sequence"
    defaults: ClassVar = {"guide": "amortised", "lr": 0.02}
    rows: Tensor
    encoder: nn.Conv1d

    def __init__(self, profile: Tensor, background: Tensor, length: int, guide: str = "amortised") -> None:
        super().__init__(guide)
        self.profile = nn.Parameter(profile.log())
        self.background = nn.Parameter(background.log())
        offset = torch.arange(length) - torch.arange(length - len(profile) + 1).unsqueeze(-1)
        inside = (offset >= 0) & (offset < len(profile))
        # For each place of the motif, the row of the table (profile, then background) that each base is drawn from.
        self.register_buffer("rows", torch.where(inside, offset, len(profile)), persistent=False)
        if not self.marginal:
            self.encoder = nn.Conv1d(len(BASES), 1, len(profile), bias=False)
            with torch.no_grad():
                self.encoder.weight.copy_((profile.log() - background.log()).mT)

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> MotifPlaces:
        """Start from the most probable of many windows of the data, each after a few steps of EM.

        Source: Bailey and Elkan (1994), Fitting a mixture model by expectation maximization to discover motifs in
        biopolymers, section "Starting points".
        """
        assert isinstance(data, PlantedMotifs)
        bases = one_hot(data.train)
        background = bases.mean((0, 1))
        windows = bases.unfold(1, data.width, 1).mT  # [n, places, width, bases]
        flat = windows.flatten(0, 1)
        chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(config.seed))[:CANDIDATES]
        profiles = 0.6 * flat[chosen] + 0.4 * background
        for keep, steps in ((KEPT, 1), (1, FIRST_STEPS)):
            for _ in range(steps):
                score = torch.einsum("npwa,cwa->cnp", windows, (profiles / background).log())
                counts = 1 + torch.einsum("cnp,npwa->cwa", score.softmax(-1), windows)
                profiles = counts / counts.sum(-1, keepdim=True)
            score = torch.einsum("npwa,cwa->cnp", windows, (profiles / background).log())
            profiles = profiles[score.logsumexp(-1).sum(-1).topk(min(keep, len(profiles))).indices]
        return cls(profiles[0], background, data.train.shape[1], config.guide)

    def model(self, x: Tensor) -> Any:
        pyro.module("motif_places", self)
        table = torch.cat([self.profile, self.background.unsqueeze(0)])
        by_place = table[self.rows]  # [places, length, bases]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Categorical(logits=by_place.new_zeros(len(by_place))))
            return pyro.sample("x", Categorical(logits=by_place[z]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("motif_places", self)
        if self.marginal:
            return
        with pyro.plate("data", len(x)):
            pyro.sample("z", Categorical(logits=self.encoder(one_hot(x).mT).squeeze(-2)))

    def values(self, x: Tensor) -> int:
        return self.rows.numel() * len(BASES)


def one_hot(x: Tensor) -> Tensor:
    """Bases `[n, length]` as indicators `[n, length, bases]`, of torch's default type."""
    return nn.functional.one_hot(x, len(BASES)).to(torch.get_default_dtype())

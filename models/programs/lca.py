"""Latent class analysis: persons of a few classes, whose answers are independent within a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Bernoulli, Categorical
from torch import Tensor, nn

from models.data.answers import Answers
from models.data.dataset import Dataset
from models.programs.program import LatentClasses, Settings, dense, logits_of_means

__all__ = ["LatentClassAnalysis"]


class LatentClassAnalysis(LatentClasses):
    """Site "z": the class of each person; "x": the answers, those left out (-1) masked.

    - `item_means` `[items]`: share of right answers, from which all classes start, a little apart.
    - `classes`: how many. `hidden`: units of the hidden layers of the guide's network.

    Source: Goodman (1974), Exploratory latent structure analysis using both identifiable and unidentifiable models.
    """

    summary = "latent class analysis: persons of a few classes answer items"
    reads = Answers
    data = "simulated-answers"
    defaults: ClassVar = {"categories": 4, "hidden_layers": 1, "hidden_units": 32, "guide": "amortised", "lr": 0.02}

    def __init__(
        self, item_means: Tensor, classes: int = 4, hidden: Sequence[int] = (32,), guide: str = "amortised"
    ) -> None:
        super().__init__(guide)
        items = len(item_means)
        self.weights = nn.Parameter(torch.zeros(classes))
        self.item_logits = nn.Parameter(logits_of_means(item_means) + 0.5 * torch.randn(classes, items))
        if not self.marginal:
            self.encoder = dense([items, *hidden, classes])

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> LatentClassAnalysis:
        answers = data.train
        given = answers >= 0
        means = (answers * given).sum(0) / given.sum(0).clamp(min=1)
        return cls(means, config.categories, config.hidden, config.guide)

    def model(self, x: Tensor) -> Tensor:
        pyro.module("latent_class_analysis", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Categorical(logits=self.weights))
            answers = Bernoulli(logits=self.item_logits[z]).mask(x >= 0).to_event(1)
            return pyro.sample("x", answers, obs=x.clamp(min=0))

    def guide(self, x: Tensor) -> None:
        pyro.module("latent_class_analysis", self)
        if self.marginal:
            return
        with pyro.plate("data", len(x)):
            signs = torch.where(x >= 0, 2 * x - 1, 0.0)
            pyro.sample("z", Categorical(logits=self.encoder(signs)))

    def values(self, x: Tensor) -> int:
        return len(self.weights) * x.shape[1]

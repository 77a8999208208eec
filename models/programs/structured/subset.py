"""Which features does a regression or a classification need? A latent subset of them, of a given size."""

from __future__ import annotations

from typing import ClassVar

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.tables import Tables
from models.errors import ConfigError
from models.programs.program import Program, Settings
from pyro_discrete.distributions import KSubset

__all__ = ["SubsetRegression"]


class SubsetRegression(Program):
    """Site "z": which features are read, k of them; "x": the targets, of a linear model that sees the others as zero.

    Weights, intercept and the noise's scale are parameters that all subsets share. The guide is a subset of the same
    size with free logits.

    - `features`: how many there are; `k`: how many are read. `classes`: whether targets are classes 0 and 1, whose
      logits the linear model gives, or numbers.

    Raises `ConfigError` for a `k` above the number of features.

    Source: George and McCulloch (1993), Variable selection via Gibbs sampling, with the size of the subset given.
    """

    summary = "feature selection: a regression or classification that reads k features"
    reads = Tables
    data = "simulated-regression"
    size = "{latents} features chosen"
    finds = True
    defaults: ClassVar = {"latents": 3, "batch_size": 1, "lr": 0.02}

    def __init__(self, features: int, k: int = 3, classes: bool = False) -> None:
        super().__init__()
        if k > features:
            raise ConfigError(f"--latents is {k}; expected 1 to {features}, the features that there are.")
        self.k, self.classes = k, classes
        self.weights = nn.Parameter(torch.zeros(features))
        self.intercept = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.encoder = nn.ParameterDict({"logits": nn.Parameter(torch.zeros(features))})

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> SubsetRegression:
        assert isinstance(data, Tables)
        return cls(len(data.features), config.latents, data.classes)

    def model(self, x: Tensor) -> None:
        pyro.module("subset_regression", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", KSubset(torch.zeros_like(self.weights), self.k))
            linear = self.linear(x[..., 1:], z)
            target = Bernoulli(logits=linear) if self.classes else Normal(linear, self.log_scale.exp())
            pyro.sample("x", target.to_event(1), obs=x[..., 0])

    def guide(self, x: Tensor) -> None:
        pyro.module("subset_regression", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.chosen)

    @property
    def chosen(self) -> KSubset:
        """The guide's subset, the same whatever the table."""
        return KSubset(self.encoder["logits"], self.k)

    def linear(self, features: Tensor, z: Tensor) -> Tensor:
        """`[..., rows]`, of features `[..., rows, features]` and subsets z `[..., features]`."""
        return self.intercept + (features * z.unsqueeze(-2)) @ self.weights

"""A variational autoencoder whose code is a row of one-hot variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.images import Images
from models.programs.program import Program, Settings, dense, logits_of_means

__all__ = ["CategoricalVAE"]


class CategoricalVAE(Program):
    """`variables` one-hot latents of `categories` each in site "z", flattened into a dense decoder.

    - `pixel_means` `[pixels]`: mean training image; the encoder sees the difference, the decoder starts from it.
    - `hidden`: units of the encoder's hidden layers; the decoder has them in reverse.
    - `learned_prior`: whether the prior's logits `[variables, categories]` are learned or stay zero (uniform).

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax.
    """

    summary = "autoencoder with a row of one-hot variables as its code"
    reads = Images
    data = "digits"
    size = "{latents} x {categories} one-hot"
    defaults: ClassVar = {
        "binarisation": "dynamic",
        "latents": 20,
        "categories": 10,
        "hidden_layers": 1,
        "hidden_units": 200,
        "prior": "uniform",
    }
    pixel_means: Tensor
    prior_logits: Tensor

    def __init__(
        self,
        pixel_means: Tensor,
        variables: int = 20,
        categories: int = 10,
        hidden: Sequence[int] = (200,),
        learned_prior: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_means", pixel_means)
        prior_logits = torch.zeros(variables, categories)
        if learned_prior:
            self.prior_logits = nn.Parameter(prior_logits)
        else:
            self.register_buffer("prior_logits", prior_logits)
        pixels, code = len(pixel_means), variables * categories
        self.encoder = dense([pixels, *hidden, code])
        self.decoder = dense([code, *reversed(hidden), pixels], logits_of_means(pixel_means))

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> CategoricalVAE:
        learned = config.prior == "learned"
        return cls(data.train.mean(0), config.latents, config.categories, config.hidden, learned)

    def model(self, x: Tensor) -> Tensor:
        pyro.module("categorical_vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", OneHotCategorical(logits=self.prior_logits).to_event(1))
            return pyro.sample("x", Bernoulli(logits=self.decoder(z.flatten(-2))).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("categorical_vae", self)
        with pyro.plate("data", len(x)):
            logits = self.encoder(x - self.pixel_means).unflatten(-1, self.prior_logits.shape)
            pyro.sample("z", OneHotCategorical(logits=logits).to_event(1))

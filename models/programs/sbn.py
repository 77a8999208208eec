"""A sigmoid belief network: layers of binary units, each a logistic regression on the layer above."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Bernoulli
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.images import Images
from models.programs.program import Program, Settings, dense, logits_of_means

__all__ = ["SigmoidBeliefNetwork"]


class SigmoidBeliefNetwork(Program):
    """Binary latents z1 (next to the image) to zL (top), and a guide that goes the other way, layer by layer.

    - `pixel_means` `[pixels]`: mean training image; the encoder sees the difference, the decoder starts from it.
    - `latents`: units of z1 to zL.
    - `hidden`: units of the hidden layers between any two stochastic ones; none makes every conditional linear.
    - `learned_prior`: whether the top layer's logits are learned or stay zero (uniform).

    Source: Neal (1992), Connectionist learning of belief networks; Mnih and Gregor (2014), Neural variational
    inference and learning in belief networks.
    """

    summary = "sigmoid belief network: one to three layers of binary units"
    reads = Images
    data = "digits"
    defaults: ClassVar = {
        "binarisation": "dynamic",
        "latents": 200,
        "layers": 1,
        "hidden_layers": 0,
        "hidden_units": 200,
        "prior": "uniform",
    }
    pixel_means: Tensor
    prior_logits: Tensor

    def __init__(
        self,
        pixel_means: Tensor,
        latents: Sequence[int] = (200,),
        hidden: Sequence[int] = (),
        learned_prior: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_means", pixel_means)
        prior_logits = torch.zeros(latents[-1])
        if learned_prior:
            self.prior_logits = nn.Parameter(prior_logits)
        else:
            self.register_buffer("prior_logits", prior_logits)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, above in pairwise([len(pixel_means), *latents]):
            output_bias = logits_of_means(pixel_means) if len(self.decoder) == 0 else None
            self.encoder.append(dense([below, *hidden, above]))
            self.decoder.append(dense([above, *reversed(hidden), below], output_bias))

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> SigmoidBeliefNetwork:
        latents = (config.latents,) * config.layers
        return cls(data.train.mean(0), latents, config.hidden, config.prior == "learned")

    def model(self, x: Tensor) -> Tensor:
        pyro.module("sigmoid_belief_network", self)
        with pyro.plate("data", len(x)):
            top = len(self.decoder)
            z = pyro.sample(f"z{top}", Bernoulli(logits=self.prior_logits).to_event(1))
            for layer in range(top - 1, 0, -1):
                z = pyro.sample(f"z{layer}", Bernoulli(logits=self.decoder[layer](z)).to_event(1))
            return pyro.sample("x", Bernoulli(logits=self.decoder[0](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("sigmoid_belief_network", self)
        with pyro.plate("data", len(x)):
            below = x - self.pixel_means
            for layer, network in enumerate(self.encoder, start=1):
                below = pyro.sample(f"z{layer}", Bernoulli(logits=network(below)).to_event(1))

"""What the tests of relaxed control variates share: a distribution of bits, a network not at zero, a wrong formula."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

__all__ = ["bent", "bits", "decoy"]


def bits(logits):
    """One event of independent bits."""
    return dist.Bernoulli(logits=logits).to_event(1)


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.tilt, self.bend = (nn.Parameter(torch.tensor(v)) for v in (0.7, -1.3))

    def forward(self, inputs):
        order = torch.arange(1, 1 + inputs.shape[-1]).to(inputs)
        return 2 * ((self.tilt * inputs * order).sum(-1) + self.bend).tanh()


def bent():
    """A network whose output is far from zero and from linear."""
    return Bent()


def decoy(logits, hard, uniform):
    """The formula of a known library: logarithms of 1 + p and 1 + v' where those of 1 - p and 1 - v' belong."""
    p = logits.sigmoid()
    v = torch.where(hard > 0, uniform * p + (1 - p), uniform * (1 - p))
    return p.log() + p.log1p() + v.log() + v.log1p()

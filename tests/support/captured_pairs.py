"""A small program whose steps are captured, and what its captured steps are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_discrete import TraceELBO
from pyro_discrete.capture.captures import Captures


class Pair:
    """A small amortised program; `change` acts on the mean of x in the model."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda mean: mean) -> None:
        torch.manual_seed(0)
        self.encoder, self.decoder, self.change = nn.Linear(3, 2), nn.Linear(2, 3), change

    def model(self, x: Tensor, *_: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)).expand([len(x), 2]).to_event(1))
            mean = self.change(self.decoder(z.to(self.decoder.weight.dtype)))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, *_: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def data(size: int = 4) -> Tensor:
    return torch.linspace(-1, 1, 3 * size).reshape(size, 3)


def graph_elbo(**settings: Any) -> TraceELBO:
    return TraceELBO("rloo", num_particles=2, compile="graph", **settings)


def captures_of(elbo: TraceELBO) -> Captures:
    assert elbo.captures is not None
    return elbo.captures


def same_as_eager(elbo: TraceELBO, model: Any, guide: Any, *args: Any, seed: int = 5) -> bool:
    """Whether a step of `elbo` gives what one without capture gives."""
    results = []
    for each in (elbo, TraceELBO("rloo", num_particles=2)):
        each.loss(model, guide, *args)  # plans
        torch.manual_seed(seed)
        step = each.gradients(model, guide, *args)
        results.append((step.loss, {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}))
    (loss, gradients), (expected, wanted) = results
    return torch.equal(loss, expected) and all(torch.equal(gradients[key], wanted[key]) for key in wanted)


def steps(elbo: TraceELBO, pair: Pair, *args: Any, count: int = 4) -> None:
    for _ in range(count):
        elbo.loss_and_grads(pair.model, pair.guide, *args)

"""The programs whose steps are timed, and the same by hand in PyTorch: leave-one-out with two draws, or exact sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from models.programs.categorical_vae import CategoricalVAE
from models.programs.hmm import HiddenMarkovModel
from models.programs.program import Program
from models.programs.sbn import SigmoidBeliefNetwork
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.training.batches import TensorBatches, as_arguments
from pyro_discrete.training.loop import FitState, Loop
from pyro_discrete.training.optimisation import build_optimizer
from pyro_discrete.training.parts import Parts
from pyro_discrete.training.ranks import Ranks

__all__ = ["SHAPES", "Shape", "by_hand", "training_loop"]

DRAWS = 2
STATES, SYMBOLS, LENGTH = 8, 20, 100


@dataclass(frozen=True)
class Shape:
    """What is timed: `kind` "binary" (with its layers), "categorical" or "chain"; `exact` sums instead of two draws."""

    title: str
    kind: str
    batch: int
    latents: tuple[int, ...] = (200,)
    hidden: tuple[int, ...] = ()
    pixels: int = 784
    exact: bool = False

    def program(self) -> Any:
        """A program of `models/` with fresh parameters, the same ones for each that is made."""
        torch.manual_seed(0)
        if self.kind == "binary":
            return SigmoidBeliefNetwork(torch.full((self.pixels,), 0.4), self.latents, self.hidden)
        if self.kind == "categorical":
            variables, categories = self.latents
            return CategoricalVAE(torch.full((self.pixels,), 0.4), variables, categories, self.hidden)
        return HiddenMarkovModel(torch.full((SYMBOLS,), 1 / SYMBOLS), STATES, guide="marginal")

    def data(self) -> Tensor:
        """One batch."""
        generator = torch.Generator().manual_seed(1)
        if self.kind == "chain":
            return torch.randint(SYMBOLS, (self.batch, LENGTH), generator=generator)
        return (torch.rand(self.batch, self.pixels, generator=generator) < 0.4).float()


SHAPES: dict[str, Shape] = {
    "linear-50": Shape("784-200 linear, batch 50", "binary", 50),
    "linear-100": Shape("784-200 linear, batch 100", "binary", 100),
    "nonlinear": Shape("784-200-200-200 non-linear, batch 100", "binary", 100, hidden=(200, 200)),
    "two-layers": Shape("784-200-200, two stochastic layers, batch 100", "binary", 100, (200, 200)),
    "categorical": Shape("20 variables x 10 categories, batch 100", "categorical", 100, (20, 10), (200,)),
    "hmm": Shape("hidden Markov model, length 100, 8 states, batch 20, exact", "chain", 20, exact=True),
}


def by_hand(shape: Shape, program: Any) -> Callable[[Tensor], Tensor]:
    """The surrogate loss of a batch for `program`'s parameters, as one would write it in PyTorch alone."""
    if shape.kind == "binary":
        return lambda x: _binary(program.encoder, program.decoder, program.pixel_means, x)
    if shape.kind == "categorical":
        return lambda x: _categorical(program, x, *shape.latents)
    return lambda x: _chain(program, x)


def _log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    return -binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)


def _leave_one_out(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`[draws, batch]` both; a constant prior is left out, as its gradient is zero."""
    cost = (log_q - log_p).detach()
    weight = cost - (cost.sum(0) - cost) / (DRAWS - 1)
    return (weight * log_q - log_p).sum() / DRAWS


def _binary(encoder: nn.ModuleList, decoder: nn.ModuleList, means: Tensor, x: Tensor) -> Tensor:
    below: Tensor = (x - means).expand(DRAWS, *x.shape) if len(encoder) > 1 else x - means
    log_q: Any = 0.0
    drawn = []
    for network in encoder:
        logits = network(below)
        logits = logits.expand(DRAWS, *logits.shape[-2:])
        below = torch.bernoulli(logits.detach().sigmoid())
        log_q = log_q + _log_bernoulli(logits, below)
        drawn.append(below)
    log_p: Any = 0.0
    for network, value, above in zip(decoder, [x, *drawn], drawn, strict=False):
        logits = network(above)
        log_p = log_p + _log_bernoulli(logits, value.expand(logits.shape))
    return _leave_one_out(log_p, log_q)


def _categorical(program: Any, x: Tensor, variables: int, categories: int) -> Tensor:
    log_mass = program.encoder(x - program.pixel_means).unflatten(-1, (variables, categories)).log_softmax(-1)
    flat = log_mass.detach().exp().reshape(-1, categories)
    z = torch.multinomial(flat, DRAWS, replacement=True).T.reshape(DRAWS, len(x), variables)
    log_q = log_mass.expand(DRAWS, *log_mass.shape).gather(-1, z.unsqueeze(-1)).sum((-1, -2))
    logits = program.decoder(one_hot(z, categories).to(x).flatten(-2))
    return _leave_one_out(_log_bernoulli(logits, x.expand(logits.shape)), log_q)


def _chain(program: Any, x: Tensor) -> Tensor:
    """Minus the log-likelihood, by the forward algorithm."""
    emission = program.emission.log_softmax(-1).T[x]  # [batch, length, states]
    transition = program.transition.log_softmax(-1)
    alpha = program.start.log_softmax(-1) + emission[:, 0]
    for t in range(1, x.shape[1]):
        alpha = (alpha.unsqueeze(-1) + transition).logsumexp(1) + emission[:, t]
    return -alpha.logsumexp(-1).sum()


def training_loop(program: Program, elbo: DiscreteELBO, x: Tensor, lr: float) -> Loop:
    """The steps of `fit` with Adam on `x`, one batch, not yet begun."""
    return Loop(
        FitState(program.model, program.guide, elbo),
        Parts(TensorBatches(x), as_arguments, Ranks(), "data", None, None),
        lambda named: build_optimizer("adam", named, lr, None),
        None,
        (None, None),
        (),
        lambda: None,
        None,
    )

"""Means and variances of a gradient estimate over many draws, parameter by parameter, with nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.diagnostics.parameters import parameter_names
from pyro_discrete.engine import DiscreteELBO
from pyro_discrete.finite import leaf_parameters
from pyro_discrete.probe import Pair

__all__ = ["GradientDraws", "Moments", "train_own_parts"]


@dataclass
class Moments:
    """Running mean and sum of squared deviations of one parameter's gradient, both of its shape, float64."""

    mean: Tensor
    squares: Tensor
    draws: int = 0

    def add(self, gradient: Tensor) -> None:
        """Welford's update: a difference of raw moments loses all digits where the variance is small."""
        self.draws += 1
        deviation = gradient.double() - self.mean
        self.mean += deviation / self.draws
        self.squares += deviation * (gradient.double() - self.mean)

    @property
    def variance(self) -> Tensor:
        """Of one estimate, of the parameter's shape."""
        return self.squares / max(self.draws - 1, 1)


@dataclass
class GradientDraws:
    """Gradient estimates of one ELBO on one pair and its arguments.

    `moments` name -> what its gradient's draws have been so far; `seconds` what each draw took.
    """

    elbo: DiscreteELBO
    pair: Pair
    moments: dict[str, Moments] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    draws: int = 0
    _names: dict[int, str] = field(default_factory=dict)

    def draw(self) -> dict[str, Tensor]:
        """One more estimate, name -> gradient; no parameter's `.grad` is touched."""
        started = time.perf_counter()
        loss = self.elbo.differentiable_loss(self.pair.model, self.pair.guide, *self.pair.args, **self.pair.kwargs)
        own = {id(p) for p in self.elbo.parameters()}
        leaves = [leaf for leaf in leaf_parameters(loss) if id(leaf) not in own]
        found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
        self.seconds.append(time.perf_counter() - started)
        return {
            self._name(leaf, leaves): torch.zeros_like(leaf) if gradient is None else gradient.detach()
            for leaf, gradient in zip(leaves, found, strict=True)
        }

    def add(self) -> None:
        """Draw, and take the estimate into the moments; a parameter that the loss does not depend on has zeros."""
        gradients = self.draw()
        for name, gradient in gradients.items():
            if name not in self.moments:
                zeros = torch.zeros_like(gradient, dtype=torch.float64)
                self.moments[name] = Moments(zeros, zeros.clone())
                for _ in range(self.draws):
                    self.moments[name].add(zeros)
        for name, moments in self.moments.items():
            moments.add(gradients.get(name, torch.zeros_like(moments.mean)))
        self.draws += 1

    def _name(self, leaf: Tensor, leaves: list[Tensor]) -> str:
        if id(leaf) not in self._names:
            known = {id(each): each for each in leaves}
            self._names |= parameter_names(known, {"model": self.pair.model, "guide": self.pair.guide})
        return self._names[id(leaf)]

    @property
    def mean(self) -> dict[str, Tensor]:
        """Name -> mean gradient."""
        return {name: moments.mean for name, moments in self.moments.items()}


def train_own_parts(
    elbo: DiscreteELBO, pair: Pair, steps: int, rate: float, progress: Callable[[], Any]
) -> None:
    """Let the estimators learn what they learn (baselines, coefficients) at the pair's parameters, which stay.

    Adam, whose rate falls linearly to zero. Running averages go on by themselves.
    """
    own = [p for p in elbo.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(own, rate) if own else None
    for step in range(steps):
        loss = elbo.differentiable_loss(pair.model, pair.guide, *pair.args, **pair.kwargs)
        if optimiser is not None:
            gradients = torch.autograd.grad(loss, own, allow_unused=True)
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.grad = gradient
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.step()
            optimiser.zero_grad()
        progress()

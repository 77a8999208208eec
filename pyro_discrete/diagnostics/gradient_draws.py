"""Means and variances of a gradient estimate over many draws, parameter by parameter, with nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.programs.pair import Pair, on_trial
from pyro_discrete.programs.parameters import leaf_parameters, parameter_names

__all__ = [
    "GradientDraws",
    "Moments",
    "train_own_parts",
]


@dataclass
class Moments:
    """Running moments of one parameter's gradient: mean and sum of squared deviations, of its shape, float64."""

    mean: Tensor
    squares: Tensor
    draws: int = 0
    _previous: Tensor | None = None
    _overlap: float = 0.0

    def add(self, gradient: Tensor) -> None:
        """Welford's update: a difference of raw moments loses all digits where the variance is small."""
        gradient = gradient.double()
        deviation = gradient - self.mean
        if self._previous is not None:
            self._overlap += float((deviation * (self._previous - self.mean)).sum()) ** 2
        self.draws += 1
        self.mean += deviation / self.draws
        self.squares += deviation * (gradient - self.mean)
        self._previous = gradient

    @property
    def variance(self) -> Tensor:
        """Of one estimate, of the parameter's shape."""
        return self.squares / max(self.draws - 1, 1)

    @property
    def squared_error(self) -> float:
        """Expected squared norm of the mean's error: the trace of its covariance."""
        return float(self.variance.sum()) / max(self.draws, 1)

    @property
    def spread(self) -> float:
        """Variance of the squared norm of the mean's error, 2 tr(C²) with C its covariance.

        For independent draws g and h with covariance S, tr(S²) is the mean of ((g - mean) . (h - mean))².
        """
        return 2 * self._overlap / max(self.draws - 1, 1) / max(self.draws, 1) ** 2


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
    _parameters: dict[str, Tensor] = field(default_factory=dict)

    def draw(self) -> dict[str, Tensor]:
        """One more estimate, name -> gradient; no parameter's `.grad` is touched."""
        if not self._parameters:
            self._parameters = self._find_parameters()
        started = time.perf_counter()
        loss = self._loss()
        present = set(map(id, leaf_parameters(loss)))
        wanted = {name: leaf for name, leaf in self._parameters.items() if id(leaf) in present}
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if wanted else ()
        self.seconds.append(time.perf_counter() - started)
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
            for (name, leaf), gradient in zip(wanted.items(), found, strict=True)
        }

    def _loss(self) -> Tensor:
        return self.elbo.differentiable_loss(self.pair.model, self.pair.guide, *self.pair.args, **self.pair.kwargs)

    def _find_parameters(self) -> dict[str, Tensor]:
        """The pair's parameters by name: leaves that two runs share (draws that slopes are taken at are leaves too,
        of one run alone), and that are not the estimators' own."""
        with on_trial():  # draws begin with the random numbers that the caller has set
            runs = [leaf_parameters(loss) for loss in (self._loss(), self._loss())]
        own = {id(p) for p in self.elbo.parameters()}
        again = set(map(id, runs[1]))
        leaves = {id(leaf): leaf for leaf in runs[0] if id(leaf) in again and id(leaf) not in own}
        names = parameter_names(leaves, {"model": self.pair.model, "guide": self.pair.guide})
        return {normalize_param_name(names[key]): leaf for key, leaf in leaves.items()}

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

    @property
    def mean(self) -> dict[str, Tensor]:
        """Name -> mean gradient."""
        return {name: moments.mean for name, moments in self.moments.items()}


def train_own_parts(
    elbo: DiscreteELBO,
    pair: Pair,
    steps: int,
    rate: float,
    progress: Callable[[], Any],
    next_batch: Callable[[], Any] | None = None,
) -> None:
    """Let the estimators learn what they learn (baselines, coefficients) at the pair's parameters, which stay.

    Adam, whose rate falls linearly to zero, on the pair's arguments or on those that `next_batch` returns. Running
    averages go on by themselves.
    """
    own = [p for p in elbo.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(own, rate) if own else None
    for step in range(steps):
        batch = pair.args if next_batch is None else next_batch()
        args = batch if isinstance(batch, tuple) else (batch,)
        loss = elbo.differentiable_loss(pair.model, pair.guide, *args, **pair.kwargs)
        if optimiser is not None:
            gradients = torch.autograd.grad(loss, own, allow_unused=True)
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.grad = gradient
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.step()
            optimiser.zero_grad()
        progress()

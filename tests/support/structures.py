"""Structures of a user's own: a right one, and a wrong one that looks right."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions import DecisionGraph, DecisionLayer, LinearChain, Structure

__all__ = ["ChoiceUnderBudget", "NoiseOfTheTakenAlone"]


class ChoiceUnderBudget(DecisionGraph):
    """Items of whole weights, as many as a budget carries: p proportional to the product of the exp(logit) taken.

    A user's own structure: states are what is spent, arcs leave an item or take it.
    """

    soft_value = "weights"

    def __init__(
        self, logits: Tensor, weights: tuple[int, ...], budget: int, *, validate_args: bool | None = None
    ) -> None:
        self.weights, self.budget = weights, budget
        super().__init__(logits, validate_args=validate_args)

    def _settings(self) -> dict[str, Any]:
        return {"weights": self.weights, "budget": self.budget}

    def layers(self) -> tuple[DecisionLayer, ...]:
        return budget_layers(self.weights, self.budget)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return WithinBudget(self.weights, self.budget)

    @property
    def cardinality(self) -> float:
        return float(len(self._support_list()))

    def _support_list(self) -> Tensor:
        every = torch.cartesian_prod(*[torch.arange(2)] * len(self.weights))
        return every[self.support.check(every)].to(self.logits.dtype)

    def vertex(self, value: Tensor) -> Tensor:
        return value.to(self.logits.dtype)

    def value_of(self, vertex: Tensor) -> Tensor:
        return vertex

    def _draw(self, shape: torch.Size) -> Tensor:
        return super()._draw(shape).to(self.logits.dtype)

    def read(self, noise: Tensor) -> Tensor:
        return super().read(noise).to(noise.dtype)

    def argmax(self, scores: Tensor) -> Tensor:
        return super().argmax(scores).to(scores.dtype)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor([0.3, -0.9, 1.1, 0.2], dtype=torch.float64)
        masked = logits.index_fill(0, torch.tensor([2]), -math.inf)
        return [cls(each, (2, 1, 3, 2), 5) for each in (logits, masked, torch.stack([logits, -logits]))]


@lru_cache
def budget_layers(weights: tuple[int, ...], budget: int) -> tuple[DecisionLayer, ...]:
    spent = torch.arange(budget + 1)
    layers = []
    for item, weight in enumerate(weights):
        after = torch.where(spent + weight <= budget, spent + weight, -1)
        logit = torch.tensor([-1, item]).expand(budget + 1, 2)
        layers.append(DecisionLayer(torch.stack([spent, after], -1), logit, torch.arange(2).expand(budget + 1, 2)))
    return tuple(layers)


class WithinBudget(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def __init__(self, weights: tuple[int, ...], budget: int) -> None:
        self.weights, self.budget = torch.tensor(weights), budget

    def check(self, value: Tensor) -> Tensor:
        return ((value == 0) | (value == 1)).all(-1) & ((value * self.weights).sum(-1) <= self.budget)


class NoiseOfTheTakenAlone(LinearChain):
    """Noise at the arcs of the path that is drawn, as if others had none of their own: it jumps where one flips."""

    def _taken(self, value: Tensor) -> Tensor:
        vertex = self.vertex(value)
        first, links = vertex[..., 0, 0, :], vertex[..., 1:, :, :]
        visited = links.sum(-1, keepdim=True).expand(links.shape)
        return torch.cat([torch.ones_like(first), visited.flatten(-3)], -1)

    def perturb(self) -> Tensor:
        noise = super().perturb()
        return torch.where(self._taken(self.read(noise)) > 0, noise, 0.0)

    def perturb_given(self, value: Tensor) -> Tensor:
        return torch.where(self._taken(value) > 0, super().perturb_given(value), 0.0)

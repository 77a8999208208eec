"""Captured steps whose operations are grouped, however few they are, and held to the graph itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_discrete.capture.grouping import group_alike
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.operation_graphs import Graph


def traced(function: Callable[..., list[Tensor]], *inputs: Tensor) -> Graph:
    """A function's graph, as torch makes it."""
    return Graph.of(make_fx(function)(*inputs))


def in_order(graph: Graph) -> bool:
    """Whether each node comes after those that it is given, all of them nodes of the graph that know it."""
    seen = set()
    for node in graph.nodes:
        if not all(each in seen and node in each.users for each in node.inputs):
            return False
        seen.add(node)
    return all(user in seen for node in seen for user in node.users)


@dataclass
class Grouped:
    """A graph, what it was run on, and what became of it."""

    graph: Graph
    inputs: list[Tensor]
    found: Graph | None

    @property
    def counts(self) -> tuple[int, int]:
        """How many nodes there were, and how many there are."""
        return len(self.graph), len(self.found or self.graph)


def grouped_always(monkeypatch: pytest.MonkeyPatch, tolerance: float = 1e-12) -> list[Grouped]:
    """Have every graph grouped that can be, and its results within a tolerance; what was done is listed."""
    made: list[Grouped] = []

    def spy(graph: Graph, inputs: Sequence[Tensor], given: Sequence[Tensor] | None = None) -> Graph | None:
        made.append(Grouped(graph, list(inputs), group_alike(graph, inputs, given)))
        return made[-1].found

    monkeypatch.setattr("pyro_discrete.capture.graph.group_alike", spy)
    monkeypatch.setattr("pyro_discrete.capture.grouping.LEAST_GAIN", -10.0)
    monkeypatch.setattr("pyro_discrete.capture.grouping.TOLERANCES", {torch.float64: tolerance})
    return made


def gradients(elbo: DiscreteELBO, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> list[Tensor]:
    """The loss, and gradients in the order of their names, of the fourth step: a captured graph gives it by itself."""
    if elbo.captures is not None:
        elbo.captures.least_operations = 0
    for _ in range(4):
        elbo.loss_and_grads(model, guide, *args)
    torch.manual_seed(7)
    step = elbo.gradients(model, guide, *args)
    found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
    stored = {name: param for name, param in pyro.get_param_store()._params.items() if id(param) in found}
    assert len(stored) == len(found)
    return [step.loss, *(found[id(stored[name])] for name in sorted(stored))]

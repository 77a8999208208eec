"""Arguments of captured steps: tensors, floats, containers, objects."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_discrete import TraceELBO
from tests.support.captured_pairs import Pair, captures_of, data, graph_elbo, same_as_eager


def test_arguments_that_are_no_tensors():
    def model(x: Tensor, options: dict[str, Any], factor: int) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (options["weight"] * factor * x).sum())

    def guide(x: Tensor, options: dict[str, Any], factor: int) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for weight in (0.1, 0.2, 0.3, 0.4):
        for factor in (1, 2):
            assert same_as_eager(elbo, model, guide, data(), {"weight": weight}, factor)
    assert captures_of(elbo).count == 2  # floats are a graph's inputs, other numbers choose it


def test_a_float_that_decides_is_a_part_of_the_key():
    def model(x: Tensor, weight: float) -> None:
        Pair.model(pair, x)
        if weight > 0.5:
            pyro.factor("more", x.sum() * weight)

    def guide(x: Tensor, weight: float) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for _ in range(4):
        for weight in (0.4, 0.6):
            assert same_as_eager(elbo, model, guide, data(), weight)
    assert captures_of(elbo).count == 2


def test_the_same_tensor_twice_is_two_arguments():
    def model(x: Tensor, y: Tensor) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (x - y).square().sum())

    def guide(x: Tensor, y: Tensor) -> None:
        Pair.guide(pair, x)

    pair, elbo, x = Pair(), graph_elbo(), data()
    for _ in range(3):
        assert same_as_eager(elbo, model, guide, x, x)
    assert same_as_eager(elbo, model, guide, x, 2 * x)


def test_an_argument_that_the_program_also_closes_over():
    x = data()

    def model(y: Tensor) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (x - y).square().sum())

    def guide(y: Tensor) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for _ in range(3):
        assert same_as_eager(elbo, model, guide, x)
    assert same_as_eager(elbo, model, guide, x + 1)


def test_the_gradient_of_an_argument():
    elbo, pair, weight = graph_elbo(), Pair(), torch.tensor(0.7, requires_grad=True)
    for _ in range(5):
        found = []
        for each in (elbo, TraceELBO("rloo", num_particles=2)):
            each.loss(pair.model, pair.guide, data())
            weight.grad = None
            torch.manual_seed(2)
            loss = each.loss_and_grads(pair.model, pair.guide, data() * weight)
            found.append((loss, weight.grad))
        assert found[0] == found[1]
    assert captures_of(elbo).count == 1

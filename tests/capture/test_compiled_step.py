"""Steps that inductor compiles."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_discrete import TraceELBO
from pyro_discrete.steps.outcome import StepGradients
from tests.support.captured_pairs import Pair, data


@pytest.mark.slow
def test_a_compiled_step_has_the_draws_of_the_eager_one():
    """By inductor sums are rounded otherwise; random numbers are the same."""
    results = []
    for compile in (False, True):
        pair, elbo = Pair(), TraceELBO("rloo", num_particles=2, compile=compile)
        for seed in range(8):  # the graph itself runs at the uses 1, 2, 4 ...
            torch.manual_seed(seed)
            step = elbo.gradients(pair.model, pair.guide, data())
            results.append(torch.cat([step.loss.reshape(1), *(g.flatten() for g in _in_order(pair, step))]))
    assert str(elbo.captures) == "1 captured step(s), 1 made so far, run by inductor"
    torch.testing.assert_close(results[:8], results[8:])


def _in_order(pair: Pair, step: StepGradients) -> list[Tensor]:
    found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
    return [found[id(p)] for p in [*pair.encoder.parameters(), *pair.decoder.parameters()]]


class Dropping(Pair):
    """In float64, where inductor's bits are others than torch's, and so are its dropped units."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(rate), nn.Linear(4, 2)).double()  # type: ignore[assignment]
        self.decoder = self.decoder.double()


def _moments(compile: Any, rate: float, steps: int = 500) -> tuple[Tensor, Tensor]:
    """Mean of a step's loss and gradient, and the variance of that mean."""
    pair, elbo = Dropping(rate), TraceELBO("rloo", num_particles=2, compile=compile)
    seen = []
    for _ in range(steps):
        step = elbo.gradients(pair.model, pair.guide, data(16).double())
        seen.append(torch.cat([step.loss.reshape(1), *(g.flatten() for g in _in_order(pair, step))]))
    assert compile is False or str(elbo.captures) == "1 captured step(s), 1 made so far, run by inductor"
    every = torch.stack(seen)
    return every.mean(0), every.var(0) / steps


@pytest.mark.slow
def test_a_compiled_step_agrees_in_the_mean_where_its_draws_are_others():
    """A z-test of each number, false-alarm probability 1e-5 in all; another dropout rate is told apart."""
    torch.manual_seed(11)
    mean, variance = _moments(True, 0.5)

    def largest(rate: float) -> float:
        other, its_variance = _moments(False, rate)
        return float(((mean - other) / (variance + its_variance).sqrt()).abs().max())

    limit = -NormalDist().inv_cdf(1e-5 / (2 * len(mean)))
    assert largest(0.5) < limit
    assert largest(0.2) > limit
